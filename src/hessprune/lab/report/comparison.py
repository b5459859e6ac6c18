"""Methods side by side: every measured cell, and the table that it makes."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprune.lab.report.document import Document, percent_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One pruned model: a method at a budget, on one draw of calibration images."""

    method: str
    """As asked for, such as `"hap(estimator=hutchinson)"`."""
    budget: float
    """Asked-for share of the comparison's quantity that is kept."""
    seed: int
    """Draws the calibration images, and whatever the method draws."""
    compensated: bool
    epochs: int = 0
    """Of fine-tuning; 0 is one-shot."""
    lr: float | None = None
    accuracy: float
    loss: float
    validation_accuracy: float | None = None
    """Of the epoch that was kept, by which learning rates are chosen."""
    macs: float
    """Share of the dense model's MACs that is left; `params` and `units` alike."""
    params: float
    units: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The cells of one method at one budget, over all draws."""

    method: str
    budget: float
    compensated: bool
    epochs: int
    lr: float | None
    kept: float
    """Mean share of the comparison's quantity that is left."""
    accuracy: float
    """Mean over the draws."""
    spread: float | None
    """Standard deviation over the draws, `√(Σ (a − ā)² / (n − 1))`; None for a single one."""
    num_draws: int

    def __str__(self) -> str:
        """`84.1 ± 0.6`, in per cent."""
        return percent_text(self.accuracy, self.spread)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Document):
    """Everything a comparison measured; `to_json` and `from_json` are inverse to each other.

    Example:
        >>> import hessprune as hp
        >>> dense = {"accuracy": 0.9, "loss": 0.3, "macs": 100, "params": 50, "units": 8}
        >>> found = hp.Comparison(
        ...     title="net", quantity="macs", methods=("joint",), budgets=(0.5,), dense=dense, cells=()
        ... )
        >>> found.budgets
        (0.5,)
    """

    file = "a comparison.json"
    remedy = "Compare again."
    title: str
    quantity: str
    """What budgets are shares of: `macs`, `params` or `units`."""
    methods: tuple[str, ...]
    budgets: tuple[float, ...]
    dense: Mapping[str, float]
    """`accuracy`, `loss`, `macs`, `params`, `units` of the model before pruning."""
    cells: tuple[Cell, ...]
    unreachable: tuple[str, ...] = ()
    """Why cells are missing: budgets below what the floors of the ranking allow."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    notes: tuple[str, ...] = ()
    """What a reader has to know to read the numbers, one sentence each."""

    @property
    def stages(self) -> tuple[tuple[int, bool], ...]:
        """Epochs of fine-tuning and whether the survivors compensated: one table each."""
        return tuple(sorted({(cell.epochs, cell.compensated) for cell in self.cells}))

    def rows(self, epochs: int, compensated: bool) -> dict[tuple[str, float], Row]:
        """Return the rows of one table by method and budget, each at the learning rate that validates best."""
        cells = [cell for cell in self.cells if (cell.epochs, cell.compensated) == (epochs, compensated)]
        found = {}
        for method, budget in dict.fromkeys((cell.method, cell.budget) for cell in cells):
            own = [cell for cell in cells if (cell.method, cell.budget) == (method, budget)]
            found[method, budget] = _row(_best_rate(own), self.quantity)
        return found

    @classmethod
    def arguments(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the class."""
        lists = {key: tuple(document[key]) for key in ("methods", "budgets", "unreachable", "notes")}
        return {**document, **lists, "cells": tuple(Cell(**cell) for cell in document["cells"])}


def stage_title(epochs: int, compensated: bool) -> str:
    """Say what was done after the cut.

    Example:
        >>> stage_title(0, False), stage_title(2, True)
        ('no compensation, no training', 'compensated, 2 epochs of fine-tuning')
    """
    training = f"{epochs} epoch{'s' if epochs != 1 else ''} of fine-tuning" if epochs else "no training"
    return f"{'compensated' if compensated else 'no compensation'}, {training}"


def best_in_column(rows: Mapping[tuple[str, float], Row]) -> Iterator[tuple[str, float]]:
    """Yield method and budget of the highest accuracy at each budget."""
    for budget in dict.fromkeys(budget for _, budget in rows):
        yield max((key for key in rows if key[1] == budget), key=lambda key: rows[key].accuracy)


def _best_rate(cells: list[Cell]) -> list[Cell]:
    """Keep the cells of the learning rate with the highest mean validation accuracy, over the draws that all had."""
    rates = {rate: [cell for cell in cells if cell.lr == rate] for rate in dict.fromkeys(cell.lr for cell in cells)}
    shared = set.intersection(*({cell.seed for cell in own} for own in rates.values()))

    def validated(own: list[Cell]) -> float:
        return statistics.fmean(cell.validation_accuracy or 0 for cell in own if cell.seed in shared)

    return max(rates.values(), key=validated)


def _row(cells: list[Cell], quantity: str) -> Row:
    first, accuracies = cells[0], [cell.accuracy for cell in cells]
    return Row(
        method=first.method,
        budget=first.budget,
        compensated=first.compensated,
        epochs=first.epochs,
        lr=first.lr,
        kept=statistics.fmean(getattr(cell, quantity) for cell in cells),
        accuracy=statistics.fmean(accuracies),
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        num_draws=len(accuracies),
    )
