"""Forwards that run plainly while we watch them: without recomputation (gradient checkpointing) and uncompiled.

`torch.utils.checkpoint` runs a block without gradients, or again in the backward pass; then a watcher sees nothing, or
everything twice. `torch.compile` hides a function from watchers. Models import both by name, so the switch sits inside
of them: in the two names that `checkpoint` looks up, and in the stance of the compiler.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import checkpoint as torch_checkpoint

_REENTRANT, _GENERATOR = "CheckpointFunction", "_checkpoint_without_reentrant_generator"
_lock, _watching = threading.Lock(), threading.local()
_active: list[bool] = []
"""One entry for each active block of any thread."""
_before: dict[str, Any] = {}
"""What the first of them found."""


@contextmanager
def plain_forwards() -> Iterator[None]:
    """Run checkpointed blocks of this thread once, and compiled functions of all threads uncompiled."""
    _enter()
    _watching.depth = _depth() + 1
    try:
        yield
    finally:
        _watching.depth -= 1
        _leave()


def _depth() -> int:
    return getattr(_watching, "depth", 0)


def _enter() -> None:
    """Switch torch over, if no other block has."""
    with _lock:
        _active.append(True)
        if not _before:
            for name in (_REENTRANT, _GENERATOR):
                _before[name] = getattr(torch_checkpoint, name)
            setattr(torch_checkpoint, _REENTRANT, _Reentrant(_before[_REENTRANT]))
            setattr(torch_checkpoint, _GENERATOR, _generator(_before[_GENERATOR]))
        if "stance" not in _before and "torch._dynamo" in sys.modules:  # slow to import; nothing is compiled without it
            _before["stance"] = _set_stance("force_eager")


def _leave() -> None:
    """Put everything back, if no other block needs it."""
    with _lock:
        _active.pop()
        if not _active:
            for name in (_REENTRANT, _GENERATOR):
                setattr(torch_checkpoint, name, _before[name])
            if "stance" in _before:
                _before["stance"].__exit__(None, None, None)
            _before.clear()


@contextmanager
def compiler_at_work() -> Iterator[None]:
    """Let the compiler work in a block inside of `plain_forwards`: `torch.export` needs it for control flow."""
    before = _set_stance("default")
    try:
        yield
    finally:
        before.__exit__(None, None, None)


def _set_stance(stance: str) -> Any:
    """Set the stance of the compiler; the returned object restores the one before."""
    return torch.compiler.set_stance(stance)


class _Reentrant:
    """Stands for `CheckpointFunction`: runs the function itself in threads that watch."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def apply(self, function: Any, preserve: bool, *args: Any) -> Any:
        """Run a checkpointed function."""
        return function(*args) if _depth() else self._original.apply(function, preserve, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _generator(original: Any) -> Any:
    """Return a stand-in for the generator around a checkpointed function: in threads that watch it does nothing."""

    def around(*args: Any, **kwargs: Any) -> Iterator[None]:
        return _nothing() if _depth() else original(*args, **kwargs)

    return around


def _nothing() -> Iterator[None]:
    """Yield where the function runs; an error of the function passes through."""
    yield
