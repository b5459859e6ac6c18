"""Decoders run without the cache of keys and values that they return by default: nothing here continues a text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

_FLAG = "use_cache"


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Switch `use_cache` off in every configuration that a module of the model holds; restore it on exit.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from hessprune.foundation.caches import without_cache
        >>> model = torch.nn.Identity()
        >>> model.config = SimpleNamespace(use_cache=True)
        >>> with without_cache(model):
        ...     print(model.config.use_cache)
        False
        >>> model.config.use_cache
        True
    """
    holders = {id(holder): holder for module in model.modules() for holder in _holders(vars(module).get("config"))}
    try:
        for holder in holders.values():
            setattr(holder, _FLAG, False)
        yield
    finally:
        for holder in holders.values():
            setattr(holder, _FLAG, True)


def without_cache_argument(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments that do not ask for a cache."""
    return {name: False if name == _FLAG and value is True else value for name, value in inputs.items()}


def _holders(config: Any) -> Iterator[Any]:
    """Yield a configuration, and those directly inside of it, whose flag is set."""
    for holder in (config, *(getattr(config, "__dict__", {}).values())):
        if getattr(holder, "__dict__", {}).get(_FLAG) is True:
            yield holder
