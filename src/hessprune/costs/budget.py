"""Budgets: an upper bound on one quantity of the pruned model, as a kept share or as an absolute number."""

import math
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.target import LatencyTarget
from hessprune.errors import BudgetError
from hessprune.foundation.formatting import shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """An upper bound on one quantity of the pruned model.

    A number in (0, 1] of `macs`, `params`, `units` or `kv_cache` is the share that is kept; a larger one is a count. A
    number of `latency_ms` is always in milliseconds. A text such as `"50%"` is a kept share of any quantity.

    Args:
        macs: Multiply–accumulate operations of one forward on the example inputs.
        params: Number of parameters.
        latency_ms: Milliseconds of one forward; a share refers to the dense model on the same `target`.
        units: Removable units of all groups together; their cost does not matter.
        kv_cache: Bytes by which a decoder's cache grows with each token, see `Cost`; only heads that keep keys and
            values leave.
        target: For `latency_ms`: the runtime, threads and batch on which `prune` measures a latency table, or a table
            that was measured before. `make_plan` and `removal_for` need a table.

    Raises:
        BudgetError: No quantity or more than one is set, the bound is not possible, or `target` stands beside a
            quantity that is not a time.

    Example:
        >>> import hessprune as hp
        >>> hp.Budget(macs=0.5).share, hp.Budget(latency_ms="50%").share, hp.Budget(latency_ms=0.5).share
        (0.5, 0.5, None)
    """

    macs: float | str | None = None
    params: float | str | None = None
    latency_ms: float | str | None = None
    units: float | str | None = None
    kv_cache: float | str | None = None
    target: LatencyTarget | LatencyTable | None = None

    def __post_init__(self) -> None:
        named = [name for name in QUANTITIES if getattr(self, name) is not None]
        if len(named) != 1:
            got = " and ".join(named) or "none"
            raise BudgetError(
                f"`Budget` must name exactly one of {', '.join(QUANTITIES)}, got {got}. Write Budget(macs=0.5)."
            )
        if isinstance(self.value, str):
            _check_percentage(self.quantity, self.value)
        else:
            _check_number(self.quantity, self.value)
        if self.target is None:
            return
        if not isinstance(self.target, LatencyTarget | LatencyTable):
            raise BudgetError(
                f"`target` must be a LatencyTarget or a LatencyTable, got {shown(self.target)}. Leave it out."
            )
        if not self.is_latency:
            raise BudgetError(
                f"`target` must come with `latency_ms`, got it beside `{self.quantity}`, which is counted, not "
                "measured. Leave it out."
            )

    @classmethod
    def keeping(cls, quantity: str, share: float, target: LatencyTarget | LatencyTable | None = None) -> "Budget":
        """Return the budget that keeps a share of a quantity.

        Example:
            >>> import hessprune as hp
            >>> hp.Budget.keeping("macs", 0.25), hp.Budget.keeping("latency_ms", 0.25)
            (Budget(macs=0.25), Budget(latency_ms='25%'))
        """
        value = f"{Decimal(repr(share)) * 100:f}" if quantity == "latency_ms" else ""
        return cls(**{quantity: _trimmed(value) + "%" if value else share, "target": target})

    @property
    def quantity(self) -> str:
        """Name of the bounded quantity."""
        return next(name for name in QUANTITIES if getattr(self, name) is not None)

    @property
    def is_latency(self) -> bool:
        """True where time is bounded."""
        return self.latency_ms is not None

    @property
    def value(self) -> float | str:
        """The bound as it was written: a number, or a text such as `"50%"`."""
        return getattr(self, self.quantity)

    @property
    def share(self) -> float | None:
        """The kept share of the quantity, in (0, 1]; None for an absolute bound."""
        if isinstance(self.value, str):
            return float(Decimal(self.value.removesuffix("%")) / 100)
        return None if self.is_latency or self.value > 1 else float(self.value)

    def limit(self, total: float) -> float:
        """Return the absolute bound for a dense model that has `total` of the quantity.

        Raises:
            BudgetError: An absolute bound exceeds the cost of the dense model.
        """
        if self.share is not None:
            return self.share * total
        bound = float(self.value)
        if bound > total:
            share = f'{self.quantity}="50%"' if self.is_latency else f"{self.quantity}=0.5"
            raise BudgetError(
                f"`Budget({self.quantity}={bound:g})` must be below the dense model's {round(total, 3):,}. "
                f"Write {share} to keep half."
            )
        return bound

    def without_target(self) -> "Budget":
        """Return the same bound without the table or target behind it."""
        return self if self.target is None else Budget(latency_ms=self.latency_ms)

    def __repr__(self) -> str:
        """Show the quantity that is set, and the kind of its target."""
        target = "" if self.target is None else f", target={type(self.target).__name__}(…)"
        return f"Budget({self.quantity}={self.value!r}{target})"


QUANTITIES = tuple(field.name for field in fields(Budget) if field.name != "target")
"""The quantities that a budget can bound."""


def check_budget(budget: Any) -> None:
    """Raise unless the argument `budget` is a `Budget`.

    Raises:
        BudgetError: It is a number, a text, a mapping or anything else.
    """
    if isinstance(budget, Budget):
        return
    pairs = list(budget.items()) if isinstance(budget, dict) else [("macs", budget)]
    name, value = pairs[0] if len(pairs) == 1 and pairs[0][0] in QUANTITIES else ("macs", 0.5)
    bound: dict[str, Any] = {name: value}
    try:
        written = Budget(**bound)
    except BudgetError:
        written = Budget(macs=0.5)
    raise BudgetError(f"`budget` must be a Budget, got {shown(budget)}. Write budget=hp.{written!r}.")


def latency_table_of(budget: Budget) -> LatencyTable | None:
    """Return the table that a budget of time is planned with; None for other quantities.

    Raises:
        BudgetError: Time is bounded, and `target` is not a table.
    """
    if not budget.is_latency:
        return None
    if not isinstance(budget.target, LatencyTable):
        raise BudgetError(
            f"`{budget.without_target()}` needs a latency table here. Pass Budget(latency_ms=…, "
            "target=hp.latency_table(model, groups, example_inputs)), or call hp.prune, which measures one."
        )
    return budget.target


def _check_percentage(quantity: str, text: str) -> None:
    number = _decimal(text.removesuffix("%"))
    if text.endswith("%") and number is not None and 0 < number <= 100:
        return
    advice = f'{quantity}="50%"'
    if number is not None and number > 0 and not text.endswith("%"):
        advice = f"{quantity}={text}" + (f' or {quantity}="{_percent(number)}"' if number <= 1 else "")
    raise BudgetError(
        f'`Budget({quantity}=…)` as a text must be a share above 0 and up to "100%", got {shown(text)}. Write {advice}.'
    )


def _check_number(quantity: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        kind = "milliseconds above 0" if quantity == "latency_ms" else "a kept share in (0, 1] or a count above 1"
        advice = f'{quantity}="50%"' if quantity == "latency_ms" else f"{quantity}=0.5"
        raise BudgetError(f"`Budget({quantity}=…)` must be {kind}, got {shown(value)}. Write {advice} to keep half.")
    if value > 1 and quantity != "latency_ms" and value != int(value):
        raise BudgetError(
            f"`Budget({quantity}=…)` above 1 must be a whole number, got {shown(value)}. "
            "A kept share lies in (0, 1]; an absolute bound is a count."
        )


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _percent(number: Decimal) -> str:
    return _trimmed(f"{number * 100:f}") + "%"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
