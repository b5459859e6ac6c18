"""The identity of data, functions and models, as hashes: two that differ in what they compute have different ones."""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule

from hessprune.foundation.bytecode import changed_while_running, codes_within, is_installed, methods_of, own_attributes
from hessprune.foundation.hashing import bytes_of
from hessprune.foundation.losses import loss_name
from hessprune.foundation.reached import PLAIN, SEQUENCES, Reached, held_by, is_own_object

_PASSING = ("training", "_is_torch_compile")
"""Attributes of modules that change nothing of what they compute."""
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def content_sha256(value: Any) -> str:
    """Return the SHA-256 over a value and all that it holds.

    Tensors and arrays count by type, shape and numbers; containers by keys and order; functions by bytecode, constants,
    defaults, closures and what they take from their module; objects by class and attributes; whatever comes with an
    installed package by its name. Takes 1.6 s for a gigabyte on a processor of 2023.

    Example:
        >>> import torch
        >>> from hessprune.foundation.identity import content_sha256
        >>> one, two = (lambda out, y: (out - y).abs().mean()), (lambda out, y: (out - y).square().mean())
        >>> content_sha256(one) == content_sha256(two), content_sha256({"a": [1]}) == content_sha256({"a": [1]})
        (False, True)
    """
    return _Contents().of(value).hex()


def architecture_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over what the weights of a model do not tell: classes, settings, and forwards of its own.

    Example:
        >>> from torch import nn
        >>> from hessprune.foundation.identity import architecture_sha256
        >>> architecture_sha256(nn.ReLU()) == architecture_sha256(nn.GELU())
        False
    """
    parts = []
    for name, module in model.named_modules():
        code = getattr(type(module).forward, "__code__", None)
        own = code is not None and not is_installed(type(module).__module__)
        parts.append((name, _name(type(module)), _ADDRESS.sub("", module.extra_repr()), code if own else None))
    return content_sha256(parts)


def modules_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over the modules of a model beside their weights: as above, and settings and functions.

    It serves runs that nothing else tells apart. Statistics compare what a model answers, too, so that they need no
    attributes, which a forward may change: a longest text so far, or a count of calls.

    A number of heads, a scale or a function that a module holds as an attribute changes no weight, either, nor do the
    functions and values that its forward takes from the user's files. What a forward changes, such as counts and
    caches, does not count.

    Example:
        >>> from torch import nn
        >>> from hessprune.foundation.identity import modules_sha256
        >>> modules_sha256(nn.MultiheadAttention(8, 2)) == modules_sha256(nn.MultiheadAttention(8, 4))
        False
    """
    graphs = [module.code for module in model.modules() if isinstance(module, GraphModule)]
    return content_sha256([architecture_sha256(model), graphs, Reached(model).values()])


def loss_identity(loss_fn: Any) -> str:
    """Return the name of a loss, and a hash of what it computes unless the name says it.

    Example:
        >>> import torch.nn.functional as F
        >>> from hessprune.foundation.identity import loss_identity
        >>> loss_identity(F.mse_loss), loss_identity(lambda out, y: out.mean())[:8]
        ('mse_loss', '<lambda>')
    """
    name = loss_name(loss_fn)
    return name if loss_fn is None or _says_all(loss_fn) else f"{name} {content_sha256(loss_fn)[:12]}"


class _Contents:
    """Hashes values; each object once, so that objects may hold each other."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._alive: list[Any] = []  # ids must not be reused meanwhile

    def of(self, value: Any) -> bytes:
        """Return the hash of a value."""
        value = _uncompiled(value)
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return _numbers(value)
        if isinstance(value, PLAIN):
            return _hashed(type(value).__name__.encode(), repr(value).encode())
        if id(value) not in self._known:
            self._known[id(value)] = b"again"  # for what it holds
            self._alive.append(value)
            self._known[id(value)] = _hashed(_name(type(value)).encode(), *self._parts(value))
        return self._known[id(value)]

    def _parts(self, value: Any) -> Iterator[bytes]:
        """Yield the hashes of all that decides a value."""
        if isinstance(value, Mapping):
            yield from (self.of(part) for pair in value.items() for part in pair)
        elif isinstance(value, SEQUENCES):
            yield from map(self.of, value)
        elif isinstance(value, set | frozenset):
            yield from sorted(map(self.of, value))
        elif isinstance(value, CodeType):
            yield from map(self.of, (value.co_code, value.co_names, value.co_consts))
        elif isinstance(value, FunctionType):
            yield from map(self.of, _parts_of_function(value))
        elif isinstance(value, partial):
            yield from map(self.of, (value.func, value.args, value.keywords))
        elif isinstance(value, MethodType):
            yield from map(self.of, (value.__func__, value.__self__))
        elif isinstance(value, type | ModuleType | BuiltinFunctionType):
            yield _name(value).encode()
            if isinstance(value, type) and not is_installed(value.__module__):
                yield from map(self.of, methods_of(value))
                yield from map(self.of, _values_of(value))
        else:
            yield from map(self.of, (type(value), _attributes(value)))


def _hashed(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _numbers(value: Any) -> bytes:
    """Return the hash of a tensor or an array."""
    if not isinstance(value, Tensor):
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            return _hashed(b"objects", repr(array.tolist()).encode())
        return _hashed(f"{array.shape}{array.dtype}".encode(), array.tobytes())
    digest = hashlib.sha256(f"{tuple(value.shape)}{value.dtype}".encode())
    digest.update(bytes_of(value))
    return digest.digest()


def _parts_of_function(function: FunctionType) -> tuple[Any, ...]:
    """Return what decides a function: of an installed one its name, of others also what they refer to."""
    if _says_all(function):
        return (_name(function),)
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # the variable is not set yet
            cells.append("unset")
    names = sorted(
        {name for code in codes_within(function.__code__) for name in code.co_names} & function.__globals__.keys()
    )
    given = [(name, _as_known(function, function.__globals__[name])) for name in names]
    return function.__code__, function.__defaults__, function.__kwdefaults__, cells, given


def _as_known(function: FunctionType, value: Any) -> Any:
    """Return a global value that a function may use: as it is, or by name where it belongs to something large."""
    simple = (*PLAIN, *SEQUENCES, Tensor, np.ndarray, set, frozenset, dict, partial, nn.Module)
    beside = isinstance(value, FunctionType | type) and value.__module__ == function.__module__
    if beside or isinstance(value, simple):
        return value
    return _kept(value, function.__code__.co_names) if is_own_object(value) else _name(value)


def _kept(value: Any, called: Collection[str]) -> tuple[Any, ...]:
    """Return class and attributes of a user's object, but those that it changes itself when it is called."""
    if isinstance(value, Enum):
        return _name(value), value.name
    changed = changed_while_running([method for _, method in methods_of(type(value))], called)
    return type(value), {name: each for name, each in _attributes(value).items() if name not in changed}


def _values_of(kind: type) -> list[tuple[str, Any]]:
    """Return the plain values that a class holds for all its objects."""
    held = (*PLAIN, *SEQUENCES, Tensor, np.ndarray, dict, set, frozenset)
    return [(name, value) for name, value in own_attributes(kind) if isinstance(value, held) and name[:2] != "__"]


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds; the mode of a module does not count."""
    passing = _PASSING if isinstance(value, nn.Module) else ()
    return {name: each for name, each in held_by(value).items() if name not in passing}


def _uncompiled(value: Any) -> Any:
    """Return what `torch.compile` was given: what it makes of that holds counters, which change with every call."""
    if isinstance(value, FunctionType):
        return vars(value).get("_torchdynamo_orig_callable", value)
    return value._orig_mod if type(value).__name__ == "OptimizedModule" else value


def _says_all(function: Any) -> bool:
    """Return whether the name of a function tells what it computes: not those that another function makes."""
    is_function = isinstance(function, FunctionType | BuiltinFunctionType)
    return is_function and "<" not in function.__qualname__ and is_installed(function.__module__ or "")


def _name(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return (
        f"{getattr(value, '__module__', '')}.{value.__name__}"
        if isinstance(value, ModuleType)
        else (f"{getattr(kind, '__module__', '')}.{kind.__qualname__}")
    )
