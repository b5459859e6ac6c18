"""The cache of keys and values: the bytes by which it grows with each token, as a linear function of units removed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from hessprune.costs.products import changes_by_group, remove_first_units
from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.caches import cached_tensors, keeps_cache, may_cache
from hessprune.foundation.modules import call_with_cache, dry_run
from hessprune.foundation.quicksizes import KnownSizes, QuickSizes
from hessprune.structure.groups import Group


def token_bytes(model: nn.Module, example_inputs: Any, removed: Sequence[Group] = ()) -> np.ndarray:
    """Return the bytes that one token of one sequence takes in each cached tensor; none for a model without a cache.

    Args:
        model: Any module.
        example_inputs: Shapes only; a window that attention slides over the text may be shorter.
        removed: Groups that have lost their first unit, unless it is their last.
    """
    return dry_run(model, example_inputs, lambda empty, inputs: _measured(empty, inputs, removed))


def _measured(model: nn.Module, inputs: Any, removed: Sequence[Group]) -> np.ndarray:
    remove_first_units(model, removed)
    with plain_forwards(), KnownSizes(), QuickSizes():
        try:
            kept = cached_tensors(call_with_cache(model, inputs))
        except ValueError:
            if keeps_cache(model):
                raise
            return np.zeros(0)  # an encoder without its decoder, as of T5, refuses what its configuration switches off
    return np.array([tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in kept], dtype=float)


def cache_bytes(model: nn.Module, example_inputs: Any, groups: Sequence[Group]) -> tuple[int, np.ndarray]:
    """Return the bytes of the cache for each token, and what one unit of each group adds to them, `(G,)`.

    Example:
        >>> import torch
        >>> from hessprune.costs.cache import cache_bytes
        >>> cache_bytes(torch.nn.Linear(2, 2), torch.zeros(1, 2), [])
        (0, array([], dtype=float64))
    """
    dense = token_bytes(model, example_inputs) if may_cache(model) else np.zeros(0)
    if not len(dense) or not groups:
        return round(float(dense.sum())), np.zeros(len(groups))
    saved = changes_by_group(groups, lambda removed: dense - token_bytes(model, example_inputs, removed))
    return round(float(dense.sum())), saved.sum(1)
