"""The products of one forward, recorded without arithmetic: the parameter that each one reads, and its cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.flop_counter import flop_registry

from hessprune.costs.contractions import attention_flops, contraction_flops, grouped_flops, is_contraction
from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.modules import call_model, device_of, dry_run, forward
from hessprune.foundation.multihead import free_heads
from hessprune.foundation.quicksizes import KnownSizes
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import to_device
from hessprune.layers.calls import slow_attention
from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group

FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._grouped_mm: grouped_flops,
}
"""Operations of one call of an operator, by shapes; torch's own counter leaves out attention and experts on CPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One convolution or matrix product."""

    owner: str
    """The parameter that it reads (empty for a product of two activations)."""
    operator: str
    """Name of the ATen operator."""
    formula: Callable[..., int]
    leaves: tuple[Any, ...]
    """Arguments and result; tensors by their shape."""
    spec: TreeSpec

    @property
    def sizes(self) -> np.ndarray:
        """All axis sizes of all tensors, one after the other."""
        return np.array([size for leaf in self.leaves if isinstance(leaf, torch.Size) for size in leaf])

    def macs(self, sizes: Sequence[float] | None = None) -> int:
        """Return the multiply–adds, for the recorded axis sizes or for others."""
        numbers = iter(self.sizes if sizes is None else sizes)
        leaves = [
            torch.Size([round(float(next(numbers))) for _ in leaf]) if isinstance(leaf, torch.Size) else leaf
            for leaf in self.leaves
        ]
        args, kwargs, out = tree_unflatten(leaves, self.spec)
        return self.formula(*args, **kwargs, out_val=out) // 2


def record_products(model: nn.Module, example_inputs: Any, removed: Sequence[Group] = ()) -> list[Product]:
    """Return the products of one forward in evaluation mode, without the first units of `removed`, except last ones.

    Raises:
        DataError: The inputs do not fit the model.
    """
    try:
        return dry_run(model, example_inputs, lambda empty, inputs: _run(empty, inputs, removed))
    except Exception:
        if not removed:  # a forward with numbers names inputs and module
            with torch.no_grad(), evaluation_mode(model):
                forward(model, to_device(example_inputs, device_of(model)), "example_inputs")
        raise


def size_changes(
    model: nn.Module, example_inputs: Any, groups: Sequence[Group], products: Sequence[Product], numbers: Sequence[int]
) -> np.ndarray:
    """Return the decrease of all axes of some products by the first unit of each group, `(G, sizes)`."""

    def changes(removed: Sequence[Group]) -> np.ndarray:
        fewer = record_products(model, example_inputs, removed)
        return dense - np.concatenate([fewer[number].sizes for number in numbers])

    if not numbers or not groups:
        return np.zeros((len(groups), sum(len(products[number].sizes) for number in numbers)))
    dense = np.concatenate([products[number].sizes for number in numbers])
    return changes_by_group(groups, changes)


def changes_by_group(groups: Sequence[Group], changes: Callable[[Sequence[Group]], np.ndarray]) -> np.ndarray:
    """Return how many numbers change by the first unit of each group, `(G, numbers)`.

    Most numbers depend on one group. Forward `j` leaves out the groups whose number has bit `j` set, so `log₂ G`
    forwards spell the number of that group for all at once. Those without a clear answer take one forward per group.
    The last unit of a group never leaves: no number changes by it.

    Args:
        groups: At least one.
        changes: Runs a forward without the first unit of some groups; returns the decrease of every number.
    """
    bits = np.array([[(number + 1) >> j & 1 for j in range(len(groups).bit_length())] for number in range(len(groups))])
    spelt = np.stack([changes([group for group, bit in zip(groups, column, strict=True) if bit]) for column in bits.T])
    total = changes(groups)
    owner = (spelt == total).T @ (1 << np.arange(len(spelt))) - 1
    result = np.zeros((len(groups), len(total)))
    clear = (total > 0) & ((spelt == 0) | (spelt == total)).all(0)
    result[owner[clear], clear.nonzero()[0]] = total[clear]
    if ((total > 0) & ~clear).any():
        result = np.stack([changes([group]) for group in groups])
    return result


def remove_first_units(model: nn.Module, groups: Sequence[Group]) -> None:
    """Remove the first unit of groups in place, where others stay: attention without heads, for one, does not run."""
    free_heads(model)  # as the pruned model computes
    pieces = [piece for group in groups if group.num_units > 1 for piece in (*group.slices, *group.literals)]
    remove_slices(model, [(piece, [0]) for piece in pieces])


def _run(model: nn.Module, inputs: Any, removed: Sequence[Group]) -> list[Product]:
    remove_first_units(model, removed)
    recorder = _Recorder(model)
    with slow_attention(), plain_forwards(), KnownSizes(), recorder, _Einsums(recorder):
        call_model(model, inputs)
    return recorder.products


class _Recorder(TorchDispatchMode):
    """Records the products below autograd. A weight is recognised by its storage, so its views count as the weight.

    Of `torch.cond` the branch that the example takes counts.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._in_branch = 0
        self.paused = False
        self._owner = {parameter.untyped_storage()._cdata: name for name, parameter in model.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._inside(func, args, kwargs)
        out = _without_numbers(func, args) or self._call(func, args, kwargs)
        formula = None if self.paused else FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.add(func._overloadpacket.__name__, formula, args, kwargs, out)
        return out

    def add(self, name: str, formula: Callable[..., int], args: Any, kwargs: Any, out: Any) -> None:
        """Record one product."""
        tensors = [arg for arg in tree_leaves((args, kwargs)) if isinstance(arg, Tensor) and arg.dim() > 1]
        owners = [self._owner.get(tensor.untyped_storage()._cdata, "") for tensor in tensors]
        leaves, spec = tree_flatten((args, kwargs, out))
        shapes = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        owner = next((owner for owner in owners if owner), "")
        self.products.append(Product(owner=owner, operator=name, formula=formula, leaves=shapes, spec=spec))

    def _inside(self, operator: HigherOrderOperator, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operator that takes functions, and count inside the function that runs."""
        if operator.name() != "cond":
            return operator(*args, **kwargs)
        condition, yes, no, operands = args
        self._in_branch += 1
        with self:
            out = (yes if condition else no)(*operands)
        self._in_branch -= 1
        return out

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operator; in a branch, where torch takes no composite operator apart, its parts if it has some."""
        if self._in_branch:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)


class _Einsums(TorchFunctionMode):
    """Records `einsum` as a whole: over one index it is no matrix product any more, and a pruned model has fewer."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.functional.einsum or not is_contraction(args):
            return func(*args, **(kwargs or {}))
        self._recorder.paused = True
        out = func(*args, **(kwargs or {}))
        self._recorder.paused = False
        equation, *operands = args
        operands = operands[0] if isinstance(operands[0], list | tuple) else operands
        self._recorder.add("einsum", contraction_flops, (equation, *operands), {}, out)
        return out


def _without_numbers(func: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return empty results of BatchNorm on the meta device, where its own kernel takes half the time of a dry run."""
    if func is not torch.ops.aten.native_batch_norm.default or not args[0].is_meta:
        return None
    statistics = args[0].new_empty(args[0].shape[1])
    return torch.empty_like(args[0]), statistics, statistics
