"""The base of all modes that watch a model run: it recognises weights by identity, and hands their uses on."""

import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode

from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.sharded import running_parameters
from hessprune.layers.views import Detour, detour_by, factors_of
from hessprune.operators.maps import Arguments, LinearMap, SampleLayout
from hessprune.operators.table import read_linear_map


class CallMode(TorchFunctionMode):
    """Base of all modes that watch a model run: hands uses of weights to `on_call`, other functions to `on_other`."""

    def __init__(
        self, names: Mapping[int, str], samples: int, layouts: Mapping[str, SampleLayout] | None = None
    ) -> None:
        super().__init__()
        self._names = dict(names)
        self._layouts = layouts or {}
        self.samples = samples
        self.divided: set[str] = set()
        """Weights of which some products took a part."""
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> Any:
        self._entered.append(plain_forwards())
        self._entered[-1].__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered.pop().__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Route one call."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":  # a composite: look inside it
            with self:
                return _without_dispatch(func)(*args, **kwargs)
        if isinstance(func, HigherOrderOperator) and name == "cond":  # look inside the branch that runs
            condition, yes, no, operands = args
            with self:
                return (yes if condition else no)(*operands)
        reading = read_linear_map(func, args, kwargs)
        if reading is not None and (weight := self._weight_of(reading[0][1])):
            (arguments, make), layout = reading, self._layouts.get(weight, SampleLayout())
            call, seen = make(self.samples, layout), arguments[1]
            if id(seen) in self._names:
                return self.on_call(weight, call, arguments)
            detour = detour_by(call, seen, seen._base, self.samples, layout)  # type: ignore[arg-type]
            if detour is not None:
                return self._through(weight, detour, arguments)
        factors = factors_of(func, args, kwargs)
        if factors is not None and self._weight_of(factors[0]):  # W @ x = (xᵀ @ Wᵀ)ᵀ
            with self:
                return (factors[1].mT @ factors[0].mT).mT
        return self.on_other(func, name, args, kwargs)

    def _weight_of(self, seen: Tensor) -> str | None:
        """Return the name of a weight, or of the one that a tensor is a view of."""
        return self._names.get(id(seen)) or (None if seen._base is None else self._names.get(id(seen._base)))

    def _through(self, weight: str, detour: Detour, arguments: Arguments) -> Tensor:
        """Handle a product with a view of a weight as one with the weight itself."""
        x, view, bias = arguments
        with self:
            x = detour.enter(x)
        whole: Any = view._base
        self.divided |= {weight} if detour.is_part else set()
        output = self.on_call(weight, detour.call, (x, whole, None if detour.is_part else bias))
        with self:
            output = detour.leave(output)
            return output + bias if detour.is_part and bias is not None else output

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:  # noqa: ARG002 - for subclasses
        """Handle a convolution or linear map by the weight called `name`."""
        x, weight, bias = arguments
        return call.forward(x, weight, bias)

    def on_other(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - for subclasses
        """Handle any other function; `name` is its own name, with the underscores of in-place forms."""
        return func(*args, **kwargs)


def weight_names(model: nn.Module) -> dict[int, str]:
    """Return the first name of every parameter of at least two axes, by identity."""
    return {id(value): name for name, value in running_parameters(model).items() if value.dim() >= 2}


@contextmanager
def slow_attention() -> Iterator[None]:
    """Keep attention modules of all threads off their fused path, which hides its parts from modes of torch."""
    with _lock:
        if not _slow:
            _fast.append(torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
        _slow.append(True)
    try:
        yield
    finally:
        with _lock:
            _slow.pop()
            if not _slow:
                torch.backends.mha.set_fastpath_enabled(_fast.pop())


_lock = threading.Lock()
_slow: list[bool] = []
"""One entry for each active block of any thread."""
_fast: list[bool] = []
"""The state of the fused path that the first of them found: enabled or not."""


@cache
def _without_dispatch(func: types.FunctionType) -> Callable[..., Any]:
    """Return a copy of a function of `torch.nn.functional` that does not hand itself to function modes."""
    never = {name: lambda *_: False for name in vars(F) if name.startswith("has_torch_function")}
    copy = types.FunctionType(func.__code__, {**func.__globals__, **never}, func.__name__, func.__defaults__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy
