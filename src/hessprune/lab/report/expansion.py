"""Widened models side by side: every model that was trained, and the table that they make."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprune.lab.report.document import Document, percent_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One model of one seed."""

    name: str
    """`dense`, `bottlenecks by METHOD`, `random`, `uniform`, `reallocated` or `unchanged`."""
    seed: int
    widths: Mapping[str, int]
    """Units of the groups that changed."""
    accuracy: float
    loss: float
    macs: int
    params: int
    epoch: int | None = None
    """Of the training, the one that was kept: 0 where training did not improve it. None without training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantRow:
    """The models of one name, over all seeds."""

    name: str
    accuracy: float
    spread: float | None
    """Standard deviation over the seeds; None for a single one."""
    params: float
    macs: float
    num_seeds: int

    def __str__(self) -> str:
        """`98.1 ± 0.4`, in per cent."""
        return percent_text(self.accuracy, self.spread)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion(Document):
    """Everything that `expand` measured; `to_json` and `from_json` are inverse to each other."""

    file = "an expansion.json"
    remedy = "Run the command again."
    title: str
    variants: tuple[Variant, ...]
    bottlenecks: Mapping[str, Any] = field(default_factory=dict)
    """The table of groups, by method and seed."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[VariantRow, ...]:
        """One row for each name, in the order in which they were tried."""
        return tuple(self._row(name) for name in dict.fromkeys(variant.name for variant in self.variants))

    @property
    def gains(self) -> dict[str, tuple[float, float | None]]:
        """Accuracy above that of `uniform` with the same seed: mean and standard error, in points, by name."""
        uniform = {variant.seed: variant.accuracy for variant in self.variants if variant.name == "uniform"}
        found = {}
        for row in self.rows:
            own = {variant.seed: variant.accuracy for variant in self.variants if variant.name == row.name}
            gaps = [100 * (own[seed] - uniform[seed]) for seed in own if seed in uniform]
            if gaps and row.name not in ("uniform", "dense"):
                error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
                found[row.name] = (statistics.fmean(gaps), error)
        return found

    @classmethod
    def arguments(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the class."""
        variants = tuple(Variant(**variant) for variant in document["variants"])
        return {**document, "variants": variants, "notes": tuple(document["notes"])}

    def _row(self, name: str) -> VariantRow:
        own = [variant for variant in self.variants if variant.name == name]
        accuracies = [variant.accuracy for variant in own]
        return VariantRow(
            name=name,
            accuracy=statistics.fmean(accuracies),
            spread=statistics.stdev(accuracies) if len(own) > 1 else None,
            params=statistics.fmean(variant.params for variant in own),
            macs=statistics.fmean(variant.macs for variant in own),
            num_seeds=len(own),
        )


def verdict(expansion: Expansion) -> str:
    """Say in one line what widening the bottlenecks brought over widening everything.

    Example:
        >>> from hessprune.lab.report.expansion import Expansion, Variant, verdict
        >>> def variant(name, seed, accuracy):
        ...     return Variant(name=name, seed=seed, widths={}, accuracy=accuracy, loss=0.1, macs=1, params=1)
        >>> tried = [variant("bottlenecks by joint", seed, 0.91) for seed in (0, 1)]
        >>> tried += [variant("uniform", seed, 0.9 - seed / 1000) for seed in (0, 1)]
        >>> verdict(Expansion(title="net", variants=tuple(tried)))
        'bottlenecks by joint: +1.1 ± 0.1 points over uniform widening, ahead by more than two standard errors'
    """
    parts = []
    for name, (gain, error) in expansion.gains.items():
        if not name.startswith("bottlenecks"):
            continue
        sure = "one seed, no error known"
        if error is not None:
            apart = abs(gain) > 2 * error
            sure = f"{'ahead' if gain > 0 else 'behind'} by more than two standard errors" if apart else "no difference"
        spread = "" if error is None else f" ± {error:.1f}"
        points = f"{gain:+.1f}{spread}".replace("-", "−")
        parts.append(f"{name}: {points} points over uniform widening, {sure}")
    return "; ".join(parts)
