"""Stacks: blocks of one class in a row, each of which reads what the one before it returns.

A block runs alone once it is known what it reads beside that: masks, positions, the output of an encoder. A dry run, in
which no block computes anything, tells.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import UnsupportedModelError
from hessprune.foundation.modules import call_model, device_of
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import leading_size, rebuilt, sample_rows, tensors_in, to_device

LEAST = 2
"""Fewest blocks of a stack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """The blocks of a model by name, in order, and what each returned for one sample."""

    names: tuple[str, ...]
    returned: tuple[Any, ...]

    def stages(self, model: nn.Module) -> "list[Stage]":
        """Return each block as a model of its own, which shares the block's parameters."""
        return [Stage(name, model.get_submodule(name)) for name in self.names]

    def read(self, model: nn.Module, inputs: Any) -> "tuple[Tensor, list[Reading]]":
        """Return what the first block reads, and what each block reads beside its input.

        Everything in front of the stack runs, and nothing of the blocks or behind them.
        """
        whole = self._calls(model, inputs)
        some = [self._calls(model, sample_rows(inputs, torch.tensor(rows))) for rows in ([0], [0, -1])]
        sides = zip(whole, *some, strict=True)
        count = leading_size(inputs)
        readings = [Reading({1: alone, 2: pair, count: every}) for every, alone, pair in sides]
        return _first(whole[0]), readings

    @torch.no_grad()
    def _calls(self, model: nn.Module, inputs: Any) -> list[tuple[Any, Any]]:
        """Return the arguments of each block in a dry run."""
        calls: list[tuple[Any, Any]] = []
        with ExitStack() as replaced:
            for number, name in enumerate(self.names):
                last = number == len(self.names) - 1
                answer = _answering(self.returned[number], calls, last=last)
                replaced.enter_context(_forward_of(model.get_submodule(name), answer))
            with (
                suppress(_EnoughError),
                evaluation_mode(model),
            ):  # raised by the last block: nothing behind it is needed
                call_model(model, inputs)
        return calls


class Reading:
    """Arguments of a block by the number of samples; no tree of tensors, so that nobody picks samples from it."""

    def __init__(self, calls: Mapping[int, tuple[Any, Any]]) -> None:
        self._calls = calls

    def of(self, samples: int) -> tuple[Any, Any]:
        """Return positional and keyword arguments for all samples, for the first and the last, or for the first."""
        return self._calls[samples]


class Stage(nn.Module):
    """A block as a model of its own: its parameters have the names that they have in the whole model."""

    def __init__(self, name: str, block: nn.Module) -> None:
        super().__init__()
        self._path = name
        *outer, last = name.split(".")
        inside: nn.Module = self
        for part in outer:
            inside.add_module(part, nn.Module())
            inside = inside.get_submodule(part)
        inside.add_module(last, block)

    def forward(self, hidden: Tensor, reading: Reading) -> Tensor:
        """Run the block on what the block before it returns."""
        args, kwargs = reading.of(len(hidden))
        hidden = hidden.clone()  # the beginning of a residual stream is a step that can be named
        args, kwargs = _with_first((args, kwargs), hidden)
        return _first(self.get_submodule(self._path)(*args, **kwargs))


class _EnoughError(Exception):
    """Ends a dry run behind the last block."""


def _first(tree: Any) -> Tensor:
    return next(tensors_in(tree))


def _with_first(tree: Any, tensor: Tensor) -> Any:
    """Return a tree with another tensor in the place of the first one."""
    places = iter(range(1 << 30))
    return rebuilt(tree, lambda old: old if next(places) else tensor)


def _answering(returned: Any, calls: list[tuple[Any, Any]], *, last: bool) -> Callable[..., Any]:
    """Return a forward that notes its arguments and computes nothing."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        if last:
            raise _EnoughError
        given = _first((args, kwargs))
        shaped = rebuilt(returned, lambda tensor: given.new_zeros(len(given), *tensor.shape[1:], dtype=tensor.dtype))
        return _with_first(shaped, given) if _first(returned).shape[1:] == given.shape[1:] else shaped

    return forward


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward for a while."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@torch.no_grad()
def find_stack(model: nn.Module, inputs: Any) -> Stack:
    """Return the longest chain of blocks of one class, by one forward on a sample, and a dry run.

    Blocks are modules with modules and weights inside; each is called once, and reads first what the one before it
    returned first.

    Args:
        model: Any module; it is left as it was.
        inputs: Of at least one sample.

    Raises:
        UnsupportedModelError: There are no such blocks, or a block reads what another one returned beside that.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.layers.stack import find_stack
        >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> find_stack(nn.Sequential(nn.Linear(2, 4), block(), block(), block()), torch.zeros(1, 2)).names
        ('1', '2', '3')
    """
    sample = to_device(sample_rows(inputs, torch.tensor([0])), device_of(model))
    calls = _watched(model, sample)
    chain = max(_chains(calls), key=len, default=[])
    if len(chain) < LEAST:
        raise UnsupportedModelError(
            "the model must be a stack of blocks where blocks are pruned one after another, got no two modules of a "
            "class of which one reads what the other returns. Leave `sequential` out."
        )
    stack = Stack(names=tuple(call.name for call in chain), returned=tuple(call.returned for call in chain))
    _check_independent(stack, model, sample, chain)
    return stack


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call of a module."""

    name: str
    module: nn.Module
    given: Any
    returned: Any


def _watched(model: nn.Module, sample: Any) -> list[_Call]:
    """Return the calls of all modules that may be blocks, in order, from one forward."""
    calls: list[_Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
            calls.append(_Call(name=name, module=module, given=(args, kwargs), returned=returned))

        return hook

    candidates = [(name, module) for name, module in model.named_modules() if name and _may_be_block(module)]
    hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in candidates]
    try:
        with evaluation_mode(model):
            call_model(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _may_be_block(module: nn.Module) -> bool:
    """Return whether a module has modules and weights inside."""
    return any(True for _ in module.children()) and any(value.dim() > 1 for value in module.parameters())


def _chains(calls: Sequence[_Call]) -> Iterator[list[_Call]]:
    """Yield maximal chains of calls of one class."""
    uses = [call.module for call in calls]
    once = [call for call in calls if sum(call.module is module for module in uses) == 1 and _has_tensors(call)]
    for kind in dict.fromkeys(type(call.module) for call in once):
        chain: list[_Call] = []
        for call in (call for call in once if type(call.module) is kind):
            if chain and _first(call.given) is not _first(chain[-1].returned):
                yield chain
                chain = []
            chain = [*chain, call]
        yield chain


def _has_tensors(call: _Call) -> bool:
    return all(any(True for _ in tensors_in(tree)) for tree in (call.given, call.returned))


def _check_independent(stack: Stack, model: nn.Module, sample: Any, chain: Sequence[_Call]) -> None:
    """Raise unless blocks read the same in a dry run, but for what the block before them returns.

    Raises:
        UnsupportedModelError: A block reads more of another one, or shares weights with it.
    """
    owners: dict[int, str] = {}
    for call in chain:
        for parameter in call.module.parameters():
            if owners.setdefault(id(parameter), call.name) != call.name:
                raise UnsupportedModelError(_dependent(call.name, "shares weights with another one"))
    dry = stack._calls(copy.copy(model), sample)
    for call, again in zip(chain, dry, strict=True):
        pairs = zip([*tensors_in(call.given)][1:], [*tensors_in(again)][1:], strict=True)
        if not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
            raise UnsupportedModelError(_dependent(call.name, "reads more of another one than its output"))


def _dependent(name: str, fault: str) -> str:
    return (
        f"the blocks of the model must be independent where they are pruned one after another, but {name!r} {fault}. "
        "Leave `sequential` out."
    )
