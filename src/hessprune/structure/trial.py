"""Trials: remove units from a copy of the model, run its forward, and put the units back."""

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hessprune.foundation.caches import copied_cache
from hessprune.foundation.formatting import first_line
from hessprune.foundation.integers import RealIntegers, inputs_with_integers, with_integers
from hessprune.foundation.misfits import failing_module
from hessprune.foundation.modules import DEVICE_FAILURES, borrowing_copy, call_model, device_of, empty_copy
from hessprune.foundation.multihead import free_heads
from hessprune.foundation.quicksizes import KnownSizes, QuickSizes
from hessprune.foundation.trees import sample_rows, tensors_in, to_device
from hessprune.foundation.written import noting_sizes
from hessprune.structure.comparison import TOLERANCE, compare, positive
from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group
from hessprune.structure.masking import Followers, Leaving, mask_groups

WORDS = 64
"""Most words of a text on which slicing is compared with masking."""
PRECISE_UP_TO = 200_000_000
"""Parameters up to which two models are compared in double precision at once; others in single precision first."""
SURELY_EQUAL = 1e-5
"""Largest difference of equal models in single precision, relative to the largest output; above it, double decides."""

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
        free_heads(self.model)
        self._needs_numbers: bool | None = None
        self._all_inputs = _with_numbers(example_inputs)
        self._numeric_inputs = _few_words(_first_sample(self._all_inputs))
        self._awake = True
        self._modes: tuple[type[RealIntegers], ...] = ()
        self._places: dict[str, int] = {}

    def failure(self, groups: Sequence[Group]) -> Failure | None:
        """Return the failure of the forward without the first unit of each group, or None."""
        failure = self.failure_of(groups)
        for copied in (_with_integers, _with_all_numbers) if failure and self._needs_numbers is None else ():
            if not self.failure_of([]):
                break
            self._modes, (self.model, self._inputs) = copied(*self._original)  # it failed for want of numbers
            free_heads(self.model)
            failure = self.failure_of(groups)
        self._needs_numbers = bool(failure)
        return failure

    def calls(self, names: set[str]) -> dict[str, Rerun]:
        """Run the whole model; return the last call of each of some modules, for a repetition."""
        calls: dict[str, Rerun] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, kwargs: calls.update({name: _rerun(module, args, kwargs)})

        modules = {name: module for name, module in self.model.named_modules() if name in names}
        hooks = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
        self.failure_of([])
        for hook in hooks:
            hook.remove()
        return calls

    def failure_of(self, groups: Sequence[Group], call: Rerun | None = None) -> Failure | None:
        """Make a call (the whole forward by default) without the first unit of each group; return its failure."""
        with ExitStack() as modes:
            for mode in (_without(self.model, groups), torch.no_grad(), warnings.catch_warnings()):
                modes.enter_context(mode)
            for mode in (*self._modes, KnownSizes, QuickSizes):
                modes.enter_context(mode())
            warnings.simplefilter("ignore")
            try:
                call() if call else call_model(self.model, self._inputs)
            except Exception as error:  # any error of the user's forward is the answer
                return Failure(failing_module(self.model, error), first_line(error))
        return None

    def named_sizes(self, groups: Sequence[Group], call: Rerun | None = None) -> set[tuple[int, str]]:
        """Return the written sizes that a call names which works without the first unit of each group, by module."""
        with noting_sizes() as named:
            self.failure_of(groups, call)
        return named

    def disagreement(self, groups: Sequence[Group]) -> str:
        """Return how a model with some units of each group sliced off differs from one with them masked; or nothing.

        Every group loses another number of units, at random positions. Costs two forwards with numbers if they agree.
        """
        model, inputs = self._original[0], self._numeric_inputs
        leaving = [*self._leaving(groups)]
        try:
            if _num_parameters(model) > PRECISE_UP_TO:
                found, _ = _apart(model, leaving, inputs, awake=self._awake, dtype=torch.float32)
                if found <= SURELY_EQUAL:
                    return ""
            found, dtype = _apart(model, leaving, inputs, awake=self._awake, dtype=torch.float64)
        except Exception as error:  # any error of the user's forward is the answer
            if isinstance(error, DEVICE_FAILURES):
                raise
            return first_line(error)
        return "" if found <= TOLERANCE[dtype] else f"without some units the output differs by {found:.1e}"

    def can_compare(self) -> bool:
        """Return whether the whole model equals itself: on the inputs, on positive ones, or with dead units asleep.

        One sample is enough, and of a text its beginning, unless the forward wants a whole text, or a whole batch.
        """
        if device_of(self._original[0]).type == "meta":
            return False
        for given in (self._numeric_inputs, _first_sample(self._all_inputs), self._all_inputs):
            for self._awake, self._numeric_inputs in ((True, given), (False, given), (False, positive(given))):
                if not self.disagreement([]):
                    return True
        return False

    def _leaving(self, groups: Sequence[Group]) -> Iterator[tuple[Group, list[int]]]:
        """Yield for each group the units that leave it: at least one, at most half, of groups in turn one more."""
        for group in groups:
            place = self._places.setdefault(group.name, len(self._places))
            count = 1 + place % max(1, group.num_units // 2)
            yield group, sorted(random.Random(place).sample(range(group.num_units), count))


def _rerun(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Rerun:
    """Return a repetition of a call, with a cache as it was before the call."""
    args, kwargs = tree_map(copied_cache, (args, kwargs))

    def run() -> Any:
        own_args, own_kwargs = tree_map(copied_cache, (args, kwargs))
        return module(*own_args, **own_kwargs)

    return run


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _apart(
    model: nn.Module, leaving: Sequence[Leaving], inputs: Any, *, awake: bool, dtype: torch.dtype
) -> tuple[float, torch.dtype]:
    """Return how far a model with some units sliced off is from one with them masked, and the precision of both."""
    sliced = _copied(model)
    remove_slices(sliced, [(cut, units) for group, units in leaving for cut in (*group.slices, *group.literals)])
    return compare(partial(_masked, model, leaving), sliced, inputs, awake=awake, dtype=dtype)


def _copied(model: nn.Module, own: Set[str] = frozenset()) -> nn.Module:
    """Copy a model; of the parameters of a large one only those in `own`, for gigabytes take their time."""
    is_large = _num_parameters(model) > PRECISE_UP_TO
    return borrowing_copy(model, own) if is_large else copy.deepcopy(model)


def _masked(model: nn.Module, leaving: Sequence[Leaving], followers: Followers) -> nn.Module:
    masked = _copied(model, own={piece.param for group, _ in leaving for piece in group.slices})
    mask_groups(masked, leaving, followers)
    return masked


def _with_integers(model: nn.Module, inputs: Any) -> tuple[Any, tuple[nn.Module, Any]]:
    """Return a copy of a model and inputs with integers alone, and the mode in which they run."""
    return (RealIntegers,), (with_integers(model).eval(), inputs_with_integers(inputs))


def _with_all_numbers(model: nn.Module, inputs: Any) -> tuple[Any, tuple[nn.Module, Any]]:
    """Return a copy of a model with its numbers, the inputs, and no mode."""
    return (), (copy.deepcopy(model).eval(), inputs)


def _with_numbers(inputs: Any) -> Any:
    """Replace floating-point inputs that say nothing (zeros, tensors without numbers) by random ones."""
    generator = torch.Generator().manual_seed(0)

    def replaced(value: Any) -> Any:
        if not isinstance(value, Tensor) or not (value.is_meta or (value.is_floating_point() and not value.any())):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype, device="cpu")
        return torch.randn(value.shape, generator=generator, device="cpu").to(value.dtype)

    return tree_map(replaced, inputs)


def _first_sample(inputs: Any) -> Any:
    """Return one sample of a batch; the inputs themselves where their first axes differ."""
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors_in(inputs)}
    return sample_rows(inputs, torch.tensor([0], device="cpu")) if len(sizes) == 1 and sizes.pop() > 1 else inputs


def _few_words(inputs: Any) -> Any:
    """Return the beginning of a long text; the inputs themselves where they are no text, or more than its words."""
    words = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if not isinstance(words, Tensor) or words.dim() != 2 or words.shape[1] <= WORDS:
        return inputs
    along = all(isinstance(value, Tensor) and value.shape == words.shape for value in inputs.values())
    return {name: value[:, :WORDS] for name, value in inputs.items()} if along else inputs


@contextmanager
def _without(model: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Remove the first unit of each group in place, and put everything back."""
    before = [(module, type(module), vars(module).copy()) for module in model.modules()]
    tables: list[tuple[Any, Any]] = [
        (table, table.copy()) for module, _, _ in before for table in (module._parameters, module._buffers)
    ]
    remove_slices(model, [(piece, [0]) for group in groups for piece in (*group.slices, *group.literals)])
    try:
        yield
    finally:
        for module, kind, contents in before:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(contents)
        for table, contents in tables:
            table.update(contents)
