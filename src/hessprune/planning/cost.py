"""What a model costs, measured; and what it will cost as an exact function of the units removed."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hessprune._modules import call_model, empty_copy, to_device
from hessprune._state import evaluation_mode
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of one forward on the example inputs, and of keeping the model.

    One multiply-add counts as one MAC; convolutions and matrix products are counted, element-wise work is not.
    """

    macs: int
    """Multiply–accumulate operations of one forward on the whole example batch."""
    params: int
    """Number of parameters, shared ones once."""
    bytes: int
    """Size of parameters and buffers, in bytes."""

    def __str__(self) -> str:
        """`40.8 M MACs, 0.27 M parameters, 1.1 MB`."""
        return f"{self.macs / 1e6:.4g} M MACs, {self.params / 1e6:.4g} M parameters, {self.bytes / 1e6:.4g} MB"


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count MACs, parameters and bytes of a model.

    The forward runs on the meta device (no arithmetic) in evaluation mode; the model is left untouched.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple, or a dict. MACs are counted for this whole batch: pass a batch of 1 for MACs
            per sample.

    Returns:
        The counted cost.

    Example:
        >>> cost(nn.Linear(10, 5), torch.zeros(1, 10))
        Cost(macs=50, params=55, bytes=220)
    """
    return CostModel(model, example_inputs).dense


class CostModel:
    """Cost as an exact function of how many units each group loses.

    Every counted product reads one weight and costs `(positions) × numel(weight)` MACs, whatever the groups or the
    kernel; so MACs, like parameters, are a sum over tensors of a coefficient times a product of axis sizes, and each
    axis size falls linearly with the units removed. Predicted cost is therefore the measured cost, not an estimate.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, groups: Iterable[Group] = ()) -> None:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        is_param = np.array([isinstance(tensor, nn.Parameter) for tensor in state.values()], dtype=bool)
        counted = count_macs(model, example_inputs)
        numel = np.array([max(tensor.numel(), 1) for tensor in state.values()])
        self._other_macs = counted.pop("", 0)
        self._weights = {
            "macs": np.array([counted.get(name, 0) for name in state]) / numel,
            "params": is_param.astype(float),
            "bytes": np.array([tensor.element_size() for tensor in state.values()], dtype=float),
        }
        self._groups = {group.name: number for number, group in enumerate(groups)}
        self._set_axes(state, list(groups))
        self.dense = self({})

    def _set_axes(self, state: Mapping[str, Tensor], groups: list[Group]) -> None:
        """Lay out axis sizes `(tensors, 8)` and how many positions one unit of each group takes, `(tensors × 8, G)`."""
        rows = {name: number for number, name in enumerate(state)}
        width = max([8, *(tensor.dim() for tensor in state.values())])
        self._sizes = np.ones((len(state), width))
        for name, tensor in state.items():
            self._sizes[rows[name], : tensor.dim()] = tensor.shape
        self._per_unit = np.zeros((len(groups), len(state), width))
        for number, group in enumerate(groups):
            for piece in group.slices:
                self._per_unit[number, rows[piece.param], piece.dim] += len(piece.index[0])

    def __call__(self, num_removed: Mapping[str, int]) -> Cost:
        """Return the cost after removing `num_removed[group name]` units of each group (0 where absent)."""
        counts = np.zeros(len(self._groups))
        for name, number in num_removed.items():
            counts[self._groups[name]] = number
        numel = (self._sizes - np.tensordot(counts, self._per_unit, axes=1)).prod(1)
        totals = {quantity: round(float(weights @ numel)) for quantity, weights in self._weights.items()}
        return Cost(macs=totals["macs"] + self._other_macs, params=totals["params"], bytes=totals["bytes"])

    def saved_next(self, quantity: str, num_removed: Mapping[str, int] | None = None) -> dict[str, float]:
        """Return what one more unit of each group saves, in MACs, parameters or bytes, after `num_removed` are gone."""
        counts = np.zeros(len(self._groups))
        for name, number in (num_removed or {}).items():
            counts[self._groups[name]] = number
        sizes = self._sizes - np.tensordot(counts, self._per_unit, axes=1)
        saved = (sizes.prod(1) - np.clip(sizes - self._per_unit, 0, None).prod(2)) @ self._weights[quantity]
        return {name: float(saved[number]) for name, number in self._groups.items()}


def count_macs(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Return MACs of one forward per parameter that the product reads (`""` for products of two activations)."""
    with torch.no_grad(), evaluation_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _run(empty_copy(model), to_device(example_inputs, "meta"))
        except (RuntimeError, NotImplementedError):  # the forward needs real numbers
            return _run(copy.deepcopy(model), example_inputs)


def _run(model: nn.Module, inputs: Any) -> dict[str, int]:
    counter = _Counter(model)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel hides its matrix products
    try:
        with counter:
            call_model(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.macs


class _Counter(TorchDispatchMode):
    """Counts multiply-adds below autograd; a weight is recognised by its storage, so views of it count as it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self._owner = {parameter.untyped_storage()._cdata: name for name, parameter in model.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            tensors = [arg for arg in tree_leaves((args, kwargs)) if isinstance(arg, Tensor) and arg.dim() > 1]
            owners = [self._owner.get(tensor.untyped_storage()._cdata, "") for tensor in tensors]
            name = next((owner for owner in owners if owner), "")
            self.macs[name] = self.macs.get(name, 0) + formula(*args, **kwargs, out_val=out) // 2
        return out
