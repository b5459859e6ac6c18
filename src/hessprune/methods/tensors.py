"""Saliencies as tensors and JSON values, for files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hessprune.foundation.symmetric import as_symmetric, symmetric_from
from hessprune.methods.values import Saliency


def saliency_tensors(values: Saliency, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the numbers as tensors under names that begin with `prefix`, and how they came about as JSON values.

    Example:
        >>> import torch
        >>> from hessprune.methods.values import Saliency
        >>> tensors, facts = saliency_tensors(Saliency({"conv1": torch.ones(2)}, provenance={"method": "magnitude"}))
        >>> saliency_from(tensors, facts)
        Saliency by magnitude: 2 units in 1 group, from 1 to 1, median 1
    """
    tensors = {f"{prefix}value:{name}": value for name, value in values.items()}
    tensors |= {f"{prefix}error:{name}": value for name, value in (values.standard_error or {}).items()}
    if values.interactions is not None:
        tensors |= as_symmetric(values.interactions).tensors(f"{prefix}interactions")
    facts = {"provenance": values.provenance, "per_cost": values.per_cost, "groups": list(values)}
    return {name: value.contiguous() for name, value in tensors.items()}, facts


def saliency_from(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], prefix: str = "") -> Saliency:
    """Return the saliencies that `saliency_tensors` took apart."""
    errors = {name: tensors[key] for name in facts["groups"] if (key := f"{prefix}error:{name}") in tensors}
    return Saliency(
        {name: tensors[f"{prefix}value:{name}"] for name in facts["groups"]},
        provenance=facts["provenance"],
        per_cost=facts["per_cost"],
        standard_error=errors or None,
        interactions=symmetric_from(tensors, f"{prefix}interactions"),
    )
