"""Decoders run without the cache of keys and values that they return by default; its size is looked at apart."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_FLAG = "use_cache"
_PARTS = "self_attention_cache", "cross_attention_cache"


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
    configs = (vars(module).get("config") for module in model.modules())
    holders = {id(holder): holder for config in configs for holder in _holders(config)}
    try:
        for holder in holders.values():
            _switch(holder, value=False)
        yield
    finally:
        for holder in holders.values():
            _switch(holder, value=True)


@contextmanager
def with_cache(model: nn.Module) -> Iterator[None]:
    """Switch `use_cache` on in the configuration of the model itself; parts such as an encoder may refuse it."""
    config = vars(model).get("config")
    before = getattr(config, _FLAG, None)
    if before is not False:
        yield
        return
    _switch(config, value=True)
    try:
        yield
    finally:
        _switch(config, value=before)


def _switch(holder: Any, *, value: Any) -> None:
    """Set the flag, also of a frozen dataclass."""
    try:
        setattr(holder, _FLAG, value)
    except AttributeError:
        object.__setattr__(holder, _FLAG, value)


def keeps_cache(model: nn.Module) -> bool:
    """Return whether the configuration of the model asks for a cache."""
    return getattr(vars(model).get("config"), _FLAG, None) is True


def may_cache(model: nn.Module) -> bool:
    """Return whether the configuration of the model says whether it keeps a cache."""
    return isinstance(getattr(vars(model).get("config"), _FLAG, None), bool)


def without_cache_argument(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments that do not ask for a cache."""
    return {name: False if name == _FLAG and value is True else value for name, value in inputs.items()}


def copied_cache(value: Any) -> Any:
    """Return a copy of a cache, which a call fills; any other value as it is."""
    is_cache = not isinstance(value, nn.Module) and any(hasattr(value, name) for name in ("layers", *_PARTS))
    return copy.deepcopy(value) if is_cache else value


def cached_tensors(output: Any) -> list[Tensor]:
    """Return the keys and the values `(N, heads, tokens, width)` of the cache in a model's output, layer by layer."""
    names = [name for name in ("cache", "past_key_values") if isinstance(output, Mapping) and name in output]
    cache = output[names[0]] if names else None
    parts = [getattr(cache, name) for name in _PARTS if hasattr(cache, name)]
    found: list[Tensor] = []
    for part in parts or [cache]:
        for layer in getattr(part, "layers", None) or ():
            pair = (getattr(layer, "keys", None), getattr(layer, "values", None))
            found += [tensor for tensor in pair if isinstance(tensor, Tensor) and tensor.dim() == 4]
    return found


def _holders(config: Any) -> Iterator[Any]:
    """Yield a configuration, and those directly inside of it, whose flag is set."""
    for holder in (config, *(getattr(config, "__dict__", {}).values())):
        if getattr(holder, "__dict__", {}).get(_FLAG) is True:
            yield holder
