"""The blocks of a model that form a stack, each of which computes alone what it computes inside the model."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import DataError, UnsupportedModelError
from hessprune.foundation.formatting import first_line
from hessprune.foundation.modules import call_model, device_of, forward
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import describe, rebuilt, sample_rows, tensors_in, to_device
from hessprune.layers.stack import Stack, dependent, first

LEAST = 2
"""Fewest blocks of a stack."""
FAULTS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""Errors of a block that misses what another one computes."""


@torch.no_grad()
def find_stack(model: nn.Module, inputs: Any) -> Stack:
    """Return the longest chain of blocks of one class that compute alone what they compute inside the model.

    Blocks are modules with modules and weights inside; each is called once, and reads first what the one before it
    returned first. Takes two forwards on two samples, dry runs, and each block alone.

    Args:
        model: Any module; it is left as it was.
        inputs: Of at least one sample.

    Raises:
        DataError: The inputs do not fit the model.
        UnsupportedModelError: There are no such blocks, they do not read samples first, or a block reads what another
            one computed beside that.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.layers.chains import find_stack
        >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> find_stack(nn.Sequential(nn.Linear(2, 4), block(), block(), block()), torch.zeros(1, 2)).names
        ('1', '2', '3')
    """
    pair = to_device(sample_rows(inputs, torch.tensor([0, -1], device="cpu")), device_of(model))
    calls = _watched(model, pair)
    chain = max(_chains(calls), key=len, default=[])
    if len(chain) < LEAST:
        raise UnsupportedModelError(
            "the model must be a stack of blocks where blocks are pruned one after another, got no two modules of a "
            "class of which one reads what the other returns. Leave `sequential` out."
        )
    alone = {call.name: call for call in _watched(model, sample_rows(pair, torch.tensor([0], device="cpu")))}
    _check_chain(chain)
    _check_layout(chain, [alone.get(call.name) for call in chain])
    single = [alone[call.name] for call in chain]
    stack = Stack(names=tuple(call.name for call in single), returned=tuple(call.returned for call in single))
    _check_independent(stack, model, pair, chain)
    _check_alone(stack, model, pair, [*zip(chain, single, strict=True)])
    return stack


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call of a module: copies of what it read and returned, and the first tensor of both itself."""

    name: str
    module: nn.Module
    given: Any
    returned: Any
    read: Tensor
    gave: Tensor


def _watched(model: nn.Module, sample: Any) -> list[_Call]:
    """Return the calls of all modules that may be blocks, in order, from one forward."""
    calls: list[_Call] = []
    given: list[Any] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append((_copied((args, kwargs)), next(tensors_in((args, kwargs)), None)))

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:  # noqa: ARG001
            (before, read), gave = given.pop(), next(tensors_in(returned), None)
            if read is not None and gave is not None:
                calls.append(
                    _Call(name=name, module=module, given=before, returned=_copied(returned), read=read, gave=gave)
                )

        return hook

    hooks = []
    for name, module in model.named_modules():
        if name and _may_be_block(module):
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave(name), with_kwargs=True))
    try:
        with evaluation_mode(model):
            forward(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _copied(tree: Any) -> Any:
    return rebuilt(tree, Tensor.clone)


def _may_be_block(module: nn.Module) -> bool:
    """Return whether a module has modules and weights inside."""
    return any(True for _ in module.children()) and any(value.dim() > 1 for value in module.parameters())


def _chains(calls: Sequence[_Call]) -> Iterator[list[_Call]]:
    """Yield maximal chains of calls of one class."""
    uses = [call.module for call in calls]
    once = [call for call in calls if sum(call.module is module for module in uses) == 1]
    for kind in dict.fromkeys(type(call.module) for call in once):
        chain: list[_Call] = []
        for call in (call for call in once if type(call.module) is kind):
            if chain and call.read is not chain[-1].gave:
                yield chain
                chain = []
            chain = [*chain, call]
        yield chain


def _check_chain(chain: Sequence[_Call]) -> None:
    """Raise unless blocks have weights of their own, and each reads the very numbers that the one before it returned.

    Raises:
        UnsupportedModelError: A block shares weights with another one, or the model works in place between two.
    """
    owners: dict[int, str] = {}
    for call in chain:
        for parameter in call.module.parameters():
            if owners.setdefault(id(parameter), call.name) != call.name:
                raise UnsupportedModelError(dependent(call.name, "shares weights with another one"))
    for before, call in itertools.pairwise(chain):
        if not _equal(first(before.returned), first(call.given)):
            fault = f"reads other numbers than {before.name!r} returned: the model changes them in place"
            raise UnsupportedModelError(dependent(call.name, fault))


def _check_layout(pairs: Sequence[_Call], singles: Sequence[_Call | None]) -> None:
    """Raise unless every block reads and returns samples along the first axis.

    Raises:
        UnsupportedModelError: A block does not, or is not called at all for one sample.
    """
    for both, one in zip(pairs, singles, strict=True):
        if one is None:
            raise UnsupportedModelError(dependent(both.name, "is called for two samples, and not for one"))
        for count, call in ((1, one), (2, both)):
            for verb, tensor in (("reads", first(call.given)), ("returns", first(call.returned))):
                if not tensor.dim() or len(tensor) != count:
                    raise UnsupportedModelError(
                        f"the blocks of the model must keep samples along the first axis where they are pruned one "
                        f"after another, but {call.name!r} {verb} {describe(tensor)} for a batch of {count}. Leave "
                        "`sequential` out."
                    )


def _check_independent(stack: Stack, model: nn.Module, pair: Any, chain: Sequence[_Call]) -> None:
    """Raise unless blocks read the same in a dry run, but for what the block before them returns.

    Raises:
        UnsupportedModelError: A block reads more of another one.
    """
    try:
        calls = stack.calls(copy.copy(model), pair)
    except DataError as error:
        reason = f"{type(error.__cause__).__name__}: {error.__cause__}".partition("\n")[0].rstrip(".")
        fault = f"or one behind it hands more on than its output ({reason})"
        raise UnsupportedModelError(dependent(chain[0].name, fault)) from error
    for call, again in zip(chain, calls, strict=True):
        real, dry = ([*tensors_in(tree)][1:] for tree in (call.given, again))
        if len(real) != len(dry) or not all(map(_equal, real, dry)):
            raise UnsupportedModelError(dependent(call.name, "reads more of another one than its output"))


def _check_alone(stack: Stack, model: nn.Module, pair: Any, calls: Sequence[tuple[_Call, _Call]]) -> None:
    """Raise unless each block, the last one first, returns alone what it returned inside the model.

    Raises:
        UnsupportedModelError: A block does not: it meets others on another way than its arguments.
    """
    _, readings = stack.read(model, pair)
    stages = stack.stages(model)
    for number in reversed(range(len(stages))):
        for call in calls[number]:
            try:
                with evaluation_mode(stages[number]):
                    alone = call_model(stages[number], (first(call.given), readings[number]))
            except FAULTS as error:
                reason = first_line(error)
                fault = f"does not run alone ({type(error).__name__}: {reason})"
                raise UnsupportedModelError(dependent(call.name, fault)) from error
            if not _near(alone, first(call.returned)):
                fault = "computes something else alone: it shares state with another one, or draws at random"
                raise UnsupportedModelError(dependent(call.name, fault))


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))


def _near(a: Tensor, b: Tensor) -> bool:
    """Return whether tensors agree but for rounding."""
    if a.shape != b.shape:
        return False
    tolerance = 1e-4 if a.element_size() >= 4 else 2e-2
    a, b = (each.double().nan_to_num(0.0, 0.0, 0.0) for each in (a, b))
    return float((a - b).norm()) <= tolerance * float(b.norm())
