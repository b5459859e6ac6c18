"""How small the model must become: one quantity, as the fraction kept or as an absolute number."""

import math
from dataclasses import dataclass, fields

from hessprune.errors import BudgetError

LATENCY = {"latency_ms": 1.0, "latency_us": 1000.0}
"""The quantities that are times, in parts of a millisecond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """An upper bound on one quantity: a *kept* fraction in (0, 1], or an absolute number above 1.

    Args:
        macs: Multiply–accumulate operations of one forward on the example inputs.
        params: Number of parameters.
        latency_ms: Milliseconds of one forward, as a latency table predicts them. Above 1 they are milliseconds.
        latency_us: The same in microseconds: for absolute bounds of at most a millisecond.
        units: Removable units of all groups, each counted alike: cost is ignored.

    Raises:
        BudgetError: No quantity or more than one is given, or the number is not a possible bound.

    Example:
        >>> Budget(macs=0.5)
        Budget(macs=0.5)
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    latency_us: float | None = None
    units: float | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            names = ", ".join(field.name for field in fields(self))
            raise BudgetError(f"`Budget` must name exactly one of {names}, got {found}.")
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise BudgetError(
                f"`Budget({self.quantity}=…)` must be a kept fraction in (0, 1] or an absolute number, got {value!r}. "
                f"Write Budget({self.quantity}=0.5) to keep half."
            )
        if value > 1 and not self.is_latency and value != int(value):
            raise BudgetError(
                f"`Budget({self.quantity}=…)` above 1 must be a whole number, got {value!r}. "
                f"A kept fraction lies in (0, 1]; an absolute bound is a count."
            )

    @property
    def quantity(self) -> str:
        """Name of the bounded quantity."""
        return next(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def is_latency(self) -> bool:
        """Whether time is bounded, which needs a latency table."""
        return self.quantity in LATENCY

    @property
    def value(self) -> float:
        """The number as given."""
        return getattr(self, self.quantity)

    def limit(self, total: float) -> float:
        """Return the absolute bound for a dense model that has `total` of the quantity.

        Raises:
            BudgetError: An absolute bound exceeds what the dense model costs.
        """
        if self.value <= 1:
            return self.value * total
        if self.value > total:
            raise BudgetError(
                f"`Budget({self.quantity}={self.value:g})` must be below the dense model's {round(total, 3):,}. "
                f"A kept fraction lies in (0, 1], for example {self.quantity}=0.5."
            )
        return self.value

    def __repr__(self) -> str:
        """Show the one quantity that is set."""
        return f"Budget({self.quantity}={self.value!r})"
