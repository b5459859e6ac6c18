"""Trials: remove units from a copy of the model, run its forward, and put the units back."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model, empty_copy, failing_module
from hessprune.foundation.state import drop_caches
from hessprune.foundation.trees import tensors_in, to_device
from hessprune.structure.capture import first_line
from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group

Rerun = Callable[[], Any]
"""Repeats one call of a module with the same arguments."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of the forward: the module that raised it, and its message."""

    module: str
    message: str


class Trial:
    """A copy of the model that loses the first unit of some groups and gets it back.

    The copy holds no numbers (meta device), unless the forward needs them.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self._original = model, example_inputs
        self.model, self._inputs = empty_copy(model).eval(), to_device(example_inputs, "meta")
        self._needs_numbers: bool | None = None

    def failure(self, groups: Sequence[Group]) -> Failure | None:
        """Return the failure of the forward without the first unit of each group, or None."""
        failure = self.failure_of(groups)
        if failure and self._needs_numbers is None and self.failure_of([]):  # it fails for want of numbers
            self.model, self._inputs = copy.deepcopy(self._original[0]).eval(), self._original[1]
            failure = self.failure_of(groups)
        self._needs_numbers = bool(failure)
        return failure

    def calls(self, names: set[str]) -> dict[str, Rerun]:
        """Run the whole model; return the last call of each of some modules, for a repetition."""
        calls: dict[str, Rerun] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, kwargs: calls.update({name: partial(module, *args, **kwargs)})

        modules = {name: module for name, module in self.model.named_modules() if name in names}
        hooks = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
        self.failure_of([])
        for hook in hooks:
            hook.remove()
        return calls

    def failure_of(self, groups: Sequence[Group], call: Rerun | None = None) -> Failure | None:
        """Make a call (the whole forward by default) without the first unit of each group; return its failure."""
        with _without(self.model, groups), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call() if call else call_model(self.model, self._inputs)
            except Exception as error:  # any error of the user's forward is the answer
                return Failure(failing_module(self.model, error), first_line(error))
        return None

    def agrees(self, groups: Sequence[Group]) -> bool:
        """Return whether slicing is masking for the first unit of each group; costs two forwards with numbers."""
        model, inputs = self._original
        masked, sliced = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
        state = {**dict(masked.named_parameters(remove_duplicate=False)), **dict(masked.named_buffers())}
        with torch.no_grad(), warnings.catch_warnings(), _without(sliced, groups):
            warnings.simplefilter("ignore")
            for piece in (piece for group in groups for piece in group.slices):
                state[piece.param].index_fill_(
                    piece.dim, piece.positions([0]).reshape(-1).to(state[piece.param].device), 0
                )
            drop_caches(masked)
            try:
                outputs = [tensors_in(call_model(each, inputs)) for each in (masked, sliced)]
                return all(_close(a, b) for a, b in zip(*outputs, strict=True))
            except Exception:  # any error of the user's forward means no
                return False


@contextmanager
def _without(model: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Remove the first unit of each group in place, and put everything back."""
    before = [(module, vars(module).copy()) for module in model.modules()]
    tables: list[tuple[Any, Any]] = [
        (table, table.copy()) for module, _ in before for table in (module._parameters, module._buffers)
    ]
    remove_slices(model, [(piece, [0]) for group in groups for piece in (*group.slices, *group.literals)])
    try:
        yield
    finally:
        for module, contents in before:
            vars(module).clear()
            vars(module).update(contents)
        for table, contents in tables:
            table.update(contents)


def _close(a: Tensor, b: Tensor) -> bool:
    """Return whether two outputs agree to 0.1 % of the largest value."""
    tolerance = 1e-3 * max(1e-6, float(a.abs().max())) if a.is_floating_point() and a.numel() else 0.0
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())
