"""All that modules compute by beside their weights: settings, code, and values from the user's files."""

from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessprune.foundation.bytecode import changed_while_running, globals_read, is_installed, methods_of, own_attributes

_NUMBERS = (bool, int, float, complex, Decimal, Fraction)
PLAIN = (*_NUMBERS, str, bytes, range, slice, torch.dtype, torch.device, Path, type(None), type(...))
"""Types of values that say all of themselves when they are printed."""
SEQUENCES = (tuple, list, deque)
_ARRAYS = (Tensor, np.ndarray, np.generic)
_CONTAINERS = (*SEQUENCES, set, frozenset, Mapping)


class Reached:
    """Settings of the modules of a model, and what their methods reach in the user's files.

    Functions and methods that others name are reached; so are the values that they read: numbers, texts, arrays,
    enumerations, and the containers, dataclasses and objects of the user's classes that hold such. What a function
    sets, or changes in place, is a count or a cache and does not count. Of modules that are installed, whose functions
    are not read, tensors and names that begin with an underscore do not count, either.
    """

    def __init__(self, model: nn.Module) -> None:
        self.functions: dict[FunctionType, None] = {}
        self._values: list[tuple[str, Any]] = []
        self._classes: dict[type, None] = {}
        self._followed: dict[int, Any] = {}
        self._modules = [(name, module) for name, module in model.named_modules()]
        for _, module in self._modules:
            self._reach_class(type(module))
            for value in _settings_of(module).values():
                self._reach(value)
        kept = (name for kind in self._classes for name, value in own_attributes(kind) if _is_kept_value(value))
        self.changed = {*changed_while_running(self.functions), *kept}

    def values(self) -> list[Any]:
        """Return all that counts, for a hash."""
        settings = [(name, self._kept(_settings_of(module))) for name, module in self._modules]
        code = [(function.__qualname__, function.__code__) for function in self.functions]
        held = [pair for kind in self._classes for pair in _values_of(kind)]
        return [settings, code, [self._kept({name: value}) for name, value in (*self._values, *held)]]

    def _reach_class(self, kind: type) -> None:
        if kind in self._classes or is_installed(kind.__module__ or ""):
            return
        self._classes[kind] = None
        for _, method in methods_of(kind):
            self._reach(method)
        for _, value in _values_of(kind):
            self._reach(value)

    def _reach(self, value: Any) -> None:
        """Follow a value to the functions in it, and to those that these read."""
        if isinstance(value, FunctionType):
            self._reach_function(value)
        elif isinstance(value, type):
            self._reach_class(value)
        elif id(value) not in self._followed:
            self._followed[id(value)] = value
            if is_own_object(value):
                self._reach_class(type(value))
            for part in _parts_of(value):
                self._reach(part)

    def _reach_function(self, function: FunctionType) -> None:
        if function in self.functions or is_installed(function.__module__ or ""):
            return
        self.functions[function] = None
        given = {"defaults": function.__defaults__, "named defaults": function.__kwdefaults__}
        cells = enumerate(cell for cell in function.__closure__ or () if not _is_empty(cell))
        read = [*given.items(), *((f"cell {place}", cell.cell_contents) for place, cell in cells)]
        for name, value in (*read, *globals_read(function)):
            if not isinstance(value, nn.Module):
                self._values.append((name, value))
                self._reach(value)

    def _kept(self, held: Mapping[Any, Any], depth: int = 0) -> list[Any]:
        """Return names and values as far as they count."""
        pairs = [(name, self._counted(value, depth)) for name, value in held.items() if not self._passes(name)]
        return [(name, *value) for name, value in pairs if value]

    def _passes(self, name: Any) -> bool:
        return isinstance(name, str) and name in self.changed

    def _counted(self, value: Any, depth: int) -> tuple[Any, ...]:
        """Return a value as plain ones, in a tuple; an empty tuple if it does not count."""
        if depth > _DEEPEST:
            return ()
        if leaf := _leaf(value):
            return leaf
        if isinstance(value, partial):
            return ("partial", *self._counted((value.func, value.args, value.keywords), depth + 1))
        if isinstance(value, Mapping):
            return ("mapping", self._kept(value, depth + 1))
        if isinstance(value, _CONTAINERS):
            return ("sequence", [self._counted(each, depth + 1) for each in value])
        if is_own_object(value):
            return (type(value).__qualname__, self._kept(held_by(value), depth + 1))
        return ()


_DEEPEST = 8
"""Levels of values within values that count; what holds itself ends there."""


def _leaf(value: Any) -> tuple[Any, ...]:
    """Return what stands for a value that holds no others; an empty tuple for one that does."""
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType) and not is_installed(value.__module__ or ""):
        return (value.__qualname__, value.__code__)  # what it reads is reached, too
    if isinstance(value, (*PLAIN, *_ARRAYS, FunctionType, BuiltinFunctionType)):
        return (value,)
    if isinstance(value, type):
        return (f"{value.__module__}.{value.__qualname__}",)
    if isinstance(value, Enum):
        return (type(value).__qualname__, value.name, *(inner for inner in [value.value] if isinstance(inner, PLAIN)))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(each for each in value if isinstance(each, PLAIN)))
    return ()


def held_by(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, in slots or not."""
    slots = [name for each in type(value).__mro__ for name in getattr(each, "__slots__", ()) if hasattr(value, name)]
    held = {name: getattr(value, name) for name in slots if isinstance(name, str) and not name.startswith("__")}
    return held | getattr(value, "__dict__", {})


def _settings_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module but its parts, weights and mode; of installed ones numbers and texts alone."""
    held = {name: value for name, value in vars(module).items() if name not in _OF_ALL_MODULES}
    if is_installed(type(module).__module__ or ""):
        public = ((name, value) for name, value in held.items() if not name.startswith("_"))
        held = {name: value for name, value in public if not isinstance(value, _ARRAYS)}
    else:
        held |= {name: module._buffers[name] for name in module._non_persistent_buffers_set if name in module._buffers}
    return {name: value for name, value in held.items() if not isinstance(value, nn.Module)}


_OF_ALL_MODULES = frozenset(vars(nn.Module()))


def _is_kept_value(value: Any) -> bool:
    """Return whether an attribute of a class is worked out once, and kept by each object."""
    return isinstance(value, cached_property)


def _values_of(kind: type) -> list[tuple[str, Any]]:
    """Return what a class holds for all its objects, but functions."""
    found = ((name, value) for name, value in own_attributes(kind) if name[:2] != "__")
    return [(name, value) for name, value in found if not isinstance(value, FunctionType | property | cached_property)]


def _parts_of(value: Any) -> Iterable[Any]:
    """Return what a value holds, as far as functions may be in it."""
    if isinstance(value, MethodType):
        return (value.__func__,)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, _CONTAINERS):
        return value
    held = getattr(value, "__dict__", {})
    return held.values() if is_own_object(value) else (held["__wrapped__"],) if "__wrapped__" in held else ()


def is_own_object(value: Any) -> bool:
    """Return whether a value is an object of the user's classes, or a namespace, and no module."""
    if isinstance(value, nn.Module | type):
        return False
    return (
        isinstance(value, SimpleNamespace | Namespace)
        or is_dataclass(value)
        or not is_installed(type(value).__module__ or "")
    )


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:  # the variable is not set yet
        return True
