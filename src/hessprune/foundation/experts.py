"""Experts of a mixture run by a plain product for each: kernels that group products take few types and widths.

Transformers picks the function that runs the experts by a setting of the configuration. Its grouped kernel refuses
64-bit numbers, tensors without numbers, and widths whose rows are no multiple of 16 bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_SETTING = "_experts_implementation"
_BY_LOOP, BY_BATCH, BY_GROUP = "eager", "batched_mm", "grouped_mm"
_ROW_BYTES = 16


@contextmanager
def experts_run_by(model: nn.Module, implementation: str | None = None) -> Iterator[None]:
    """Run the experts in a block one after the other, or by another implementation; without numbers, side by side.

    A model whose experts run side by side already takes any numbers and widths, and stays as it is.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from hessprune.foundation.experts import experts_run_by
        >>> model = torch.nn.Linear(1, 1)
        >>> model._is_expert_parallel = False  # as transformers marks the experts of a mixture
        >>> model.config = SimpleNamespace(_experts_implementation="grouped_mm")
        >>> with experts_run_by(model):
        ...     print(model.config._experts_implementation)
        eager
        >>> model.config._experts_implementation
        'grouped_mm'
    """
    holders = _holders(model)
    if implementation is None:
        holders = [holder for holder in holders if getattr(holder, _SETTING) != BY_BATCH]
        implementation = BY_BATCH if holders and next(model.parameters()).is_meta else _BY_LOOP
    before = [getattr(holder, _SETTING) for holder in holders]
    try:
        for holder in holders:
            setattr(holder, _SETTING, implementation)
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            setattr(holder, _SETTING, value)


def put_experts_side_by_side(model: nn.Module) -> None:
    """Let experts run by one product for each token and expert, from now on: its shapes do not depend on numbers."""
    for holder in _holders(model):
        setattr(holder, _SETTING, BY_BATCH)


def let_experts_fit(model: nn.Module) -> None:
    """Let experts of a width that the grouped kernel refuses run one after the other, from now on."""
    for holder in _holders(model):
        if getattr(holder, _SETTING) == BY_GROUP and not all(map(_fits, _experts(model))):
            setattr(holder, _SETTING, _BY_LOOP)


def _experts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that hold experts."""
    yield from (module for module in model.modules() if hasattr(module, "_is_expert_parallel"))


def _fits(module: nn.Module) -> bool:
    """Return whether all rows of all weights are multiples of 16 bytes."""
    weights = [weight for weight in module.parameters(recurse=False) if weight.dim() == 3]
    return all(size * weight.element_size() % _ROW_BYTES == 0 for weight in weights for size in weight.shape[1:])


def _holders(model: nn.Module) -> list[Any]:
    """Return the configurations, each once, by which experts of the model choose their implementation."""
    configs = [vars(module).get("config") for module in _experts(model)]
    found = {id(config): config for config in configs if getattr(config, _SETTING, None) is not None}
    return [*found.values()]
