"""Stop drawing when the decision on the units has settled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_range
from hessprune.foundation.formatting import shown

Decision = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A function from values by key to booleans by key, true for the units to remove."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Until:
    """Draw until the set of removed units is settled at a stated confidence.

    The decision is repeated on values with normal noise of their standard errors. It has settled when the mean overlap
    of the removed sets `A` and `B`, `2 |A ∩ B| / (|A| + |B|)`, is at least the confidence.

    Example:
        >>> import torch
        >>> from hessprune.curvature import Until, lowest
        >>> until = Until(removed=lowest(0.5), confidence=0.95)
        >>> values = {"a": torch.tensor([1.0, 2.0, 8.0, 9.0])}
        >>> until.settled(values, {"a": torch.full((4,), 0.1)}), until.settled(values, {"a": torch.full((4,), 30.0)})
        (True, False)
    """

    removed: Decision
    confidence: float = 0.95
    draws_per_round: int = 8
    """Draws or probes between two checks, at least 2: fewer do not give a standard error."""

    def __post_init__(self) -> None:
        if not callable(self.removed):
            raise ArgumentError(
                f"`removed` must be a function from values to the units that leave, got {shown(self.removed)}. Pass "
                "hessprune.curvature.lowest(0.5) for half of the units."
            )
        check_range("confidence", self.confidence, low=0.5, high=1.0)
        check_range("draws_per_round", self.draws_per_round, low=2, integer=True)

    def settled(self, values: Mapping[str, Tensor], errors: Mapping[str, Tensor], *, trials: int = 32) -> bool:
        """Return True if the decision holds under normal noise of the values' standard errors."""
        if not all(bool(torch.isfinite(error).all()) for error in errors.values()):
            return False
        decided = _joined(self.removed(values))
        generator = torch.Generator().manual_seed(0)
        differing = 0.0
        for _ in range(trials):
            shaken = {key: value + errors[key] * _normal(value, generator) for key, value in values.items()}
            other = _joined(self.removed(shaken))
            differing += float((other != decided).sum()) / max(float(other.sum() + decided.sum()), 1.0)
        return 1 - differing / trials >= self.confidence


def lowest(fraction: float, cost: Mapping[str, Tensor] | None = None) -> Decision:
    """Return the decision that removes the units of lowest value per cost until `fraction` of all cost is gone.

    Example:
        >>> import torch
        >>> from hessprune.curvature import lowest
        >>> lowest(0.5)({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])})
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    check_range("fraction", fraction, low=0, high=1)

    def removed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flat = _joined(values)
        price = torch.ones_like(flat) if cost is None else _joined({key: cost[key] for key in values}).to(flat)
        order = (flat / price).argsort(stable=True)
        gone = price[order].cumsum(0) <= fraction * float(price.sum()) + 1e-9
        mask = torch.zeros_like(gone).scatter_(0, order, gone)
        return dict(zip(values, mask.split([len(value) for value in values.values()]), strict=True))

    return removed


def _joined(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


def _normal(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(value.shape, generator=generator, dtype=value.dtype, device="cpu")
