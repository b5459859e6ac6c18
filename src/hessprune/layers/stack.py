"""Stacks: blocks of one class in a row, each of which reads what the one before it returns.

A block runs alone once it is known what it reads beside that: masks, positions, the output of an encoder. A dry run, in
which no block computes anything, tells.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import UnsupportedModelError
from hessprune.foundation.modules import forward
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import leading_size, rebuilt, sample_rows, tensors_in


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

        Raises:
            UnsupportedModelError: A block is not reached.
        """
        whole = self.calls(model, inputs)
        some = [self.calls(model, sample_rows(inputs, torch.tensor(rows, device="cpu"))) for rows in ([0], [0, -1])]
        sides = zip(whole, *some, strict=True)
        count = leading_size(inputs)
        readings = [Reading({1: alone, 2: pair, count: every}) for every, alone, pair in sides]
        return first(whole[0]), readings

    @torch.no_grad()
    def calls(self, model: nn.Module, inputs: Any) -> list[tuple[Any, Any]]:
        """Return the arguments of each block in a dry run.

        Raises:
            UnsupportedModelError: A block is not reached where none before it computes.
        """
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
                forward(model, inputs)
        if len(calls) != len(self.names):
            raise UnsupportedModelError(dependent(self.names[len(calls)], "runs or not by what another one computes"))
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
        return first(self.get_submodule(self._path)(*args, **kwargs))


class _EnoughError(Exception):
    """Ends a dry run behind the last block."""


def first(tree: Any) -> Tensor:
    """Return the first tensor of a tree."""
    return next(tensors_in(tree))


def _with_first(tree: Any, tensor: Tensor) -> Any:
    """Return a tree with another tensor in the place of the first one."""
    places = iter(range(1 << 30))
    return rebuilt(tree, lambda old: old if next(places) else tensor)


def _answering(returned: Any, calls: list[tuple[Any, Any]], *, last: bool) -> Callable[..., Any]:
    """Return a forward that notes its arguments and computes nothing."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        if last:
            raise _EnoughError
        given = first((args, kwargs))
        shaped = rebuilt(returned, lambda tensor: given.new_zeros(len(given), *tensor.shape[1:], dtype=tensor.dtype))
        return _with_first(shaped, given) if first(returned).shape[1:] == given.shape[1:] else shaped

    return answer


@contextmanager
def _forward_of(module: nn.Module, other: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward for a while."""
    own = vars(module).get("forward")
    module.forward = other
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def dependent(name: str, fault: str) -> str:
    """Return the message that refuses a stack for what one of its blocks does."""
    return (
        f"the blocks of the model must be independent where they are pruned one after another, but {name!r} {fault}. "
        "Leave `sequential` out."
    )
