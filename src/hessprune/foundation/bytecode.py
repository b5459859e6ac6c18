"""The code of functions and classes: the names that it reads, and those that it changes."""

import dis
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from inspect import unwrap
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

_LIBRARIES = ("torch", "numpy", "hessprune", "builtins")
_CHANGING = {
    "add",
    "append",
    "clear",
    "discard",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "setdefault",
    "update",
}
"""Methods of containers that change them; of tensors those whose names end in one underscore."""
_SILENT = ("CACHE", "RESUME", "NOP", "PRECALL", "EXTENDED_ARG", "STORE", "DELETE", "POP", "RETURN", "JUMP")
_SILENT += ("BINARY_SUBSCR",)
"""Beginnings of the names of steps that put nothing on the stack; what is taken from a container goes by its name."""
_MAKING = ("__init__", "__post_init__", "__new__")
"""Functions that make an object: what they set is a setting."""


def is_installed(module: str) -> bool:
    """Return whether a module belongs to torch, to the standard library, or to an installed package."""
    top = module.partition(".")[0]
    if top in _LIBRARIES or (top in sys.stdlib_module_names and top != "__main__"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and "site-packages" in Path(file).parts


def codes_within(code: CodeType) -> Iterator[CodeType]:
    """Yield a code and all codes inside."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_within(constant)


def own_attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a class and of those it extends, as far as they are not installed."""
    for each in kind.__mro__:
        if not is_installed(each.__module__):
            yield from vars(each).items()


def methods_of(kind: type) -> list[tuple[str, FunctionType]]:
    """Return the functions and properties of a class and of those it extends, unless installed."""
    return [(name, value) for name, each in own_attributes(kind) if isinstance(value := _read_by(each), FunctionType)]


def globals_read(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the global values that a function reads, those of the user's other modules included."""
    for code in codes_within(function.__code__):
        steps = [step for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
        for name in sorted({step.argval for step in steps} & function.__globals__.keys()):
            value = function.__globals__[name]
            yield from _read_from(name, value, code.co_names, {})


def _read_from(name: str, value: Any, names: Collection[str], seen: dict[str, None]) -> Iterator[tuple[str, Any]]:
    """Yield a value, or of one of the user's modules the values with certain names, and those of modules within."""
    if not isinstance(value, ModuleType) or is_installed(value.__name__):
        yield name, value
    elif value.__name__ not in seen:
        seen[value.__name__] = None
        for inner in names:
            if inner in vars(value):
                yield from _read_from(inner, vars(value)[inner], names, seen)


def changed_while_running(functions: Iterable[FunctionType], names: Collection[str] = ()) -> set[str]:
    """Return the names that some functions change, as far as a call reaches them.

    Args:
        functions: Functions, and methods of classes.
        names: What is called, beside `forward`, operators, and functions of no class; then what these name.
    """
    waiting, running, called = dict.fromkeys(functions), [], {"forward", *names}
    while found := [each for each in waiting if _is_called(each, called)]:
        running += found
        called.update(name for each in found for code in codes_within(each.__code__) for name in code.co_names)
        waiting = {each: None for each in waiting if each not in found}
    return {name for each in running for name in names_changed(each)}


def _is_called(function: FunctionType, names: Collection[str]) -> bool:
    name, kind = function.__name__, function.__qualname__.rpartition(".")[0]
    is_operator = name[:2] == "__" and name not in _MAKING
    return name in names or is_operator or not kind or kind.endswith("<locals>")


def names_changed(function: FunctionType) -> set[str]:
    """Return the names of globals and attributes that a function sets, or whose value it changes in place.

    Functions that make an object change none of it.

    Example:
        >>> from hessprune.foundation.bytecode import names_changed
        >>> def counts(self, x):
        ...     self.calls += 1
        ...     self.seen[len(x)] = x
        ...     self.sums.append(x)
        ...     return x * self.scale
        >>> sorted(names_changed(counts))
        ['calls', 'seen', 'sums']
    """
    if function.__name__ in _MAKING:
        return set()
    return {name for code in codes_within(function.__code__) for name in _changed_by(code) if isinstance(name, str)}


def _changed_by(code: CodeType) -> Iterator[Any]:
    """Yield the names, along with what lies on the stack: the name that each value was read by, where there is one."""
    stack: list[Any] = []
    for step in dis.get_instructions(code):
        top, below = ([None, None, *stack][-1], [None, None, *stack][-2])
        if step.opname in ("STORE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"):
            yield step.argval
        elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            yield below
        elif step.opname in ("LOAD_METHOD", "LOAD_ATTR") and _is_changing(str(step.argval)):
            yield top
        _follow(stack, step)


def _follow(stack: list[Any], step: dis.Instruction) -> None:
    """Change the stack as one step does; jumps are taken for steps like others, which misses some names."""
    stack[:0] = [None] * 8  # values that a jump has left behind
    name, depth = step.opname, dis.stack_effect(step.opcode, step.arg, jump=False)
    if name == "COPY":
        stack.append(stack[-step.arg] if step.arg and step.arg <= len(stack) else None)
    elif name == "SWAP" and step.arg and step.arg <= len(stack):
        stack[-1], stack[-step.arg] = stack[-step.arg], stack[-1]
    elif name in ("LOAD_ATTR", "LOAD_METHOD"):
        stack[-1:] = [step.argval, *[None] * depth]
    elif depth > 0:
        stack += ([None] * depth + ([step.argval] if name in ("LOAD_GLOBAL", "LOAD_NAME") else []))[-depth:]
    else:
        del stack[len(stack) + depth :]
        if not name.startswith(_SILENT):
            stack[-1] = None
    del stack[:-64]


def _is_changing(name: str) -> bool:
    return name in _CHANGING or (name.endswith("_") and not name.endswith("__"))


def _read_by(value: Any) -> Any:
    """Return the function behind an attribute of a class; the attribute itself if there is none."""
    if isinstance(value, property):
        return value.fget
    inner = value.func if isinstance(value, cached_property) else getattr(value, "__func__", value)
    return unwrap(inner) if callable(inner) else inner
