"""The number that models are judged by in a report: accuracy, the higher the better, or perplexity, the lower."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hessprune.lab.report.formats import format_factor, format_points
from hessprune.lab.report.run_report import ModelResult, RunReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A name, and the ways to write a value and what became of it.

    Attributes:
        name: As in the middle of a sentence.
        of: From a result of a model, or a point of a curve, to the value.
        text: The value as text.
        change: From a value and that of the dense model to text.
        lower_is_better: True for perplexity.
    """

    name: str
    of: Callable[[Any], float]
    text: Callable[[float], str]
    change: Callable[[float, float], str]
    lower_is_better: bool = False

    @property
    def title(self) -> str:
        """The name as a heading."""
        return self.name.capitalize()


ACCURACY = Score(
    name="accuracy",
    of=lambda result: result.accuracy,
    text=lambda value: f"{100 * value:.1f} %",
    change=lambda value, dense: format_points(100 * (value - dense)),
)
PERPLEXITY = Score(
    name="perplexity",
    of=lambda result: result.perplexity,
    text=lambda value: f"{value:.4g}",
    change=lambda value, dense: format_factor(value / dense),
    lower_is_better=True,
)


def score_of(report: RunReport) -> Score:
    """Return what a report judges its models by.

    Example:
        >>> from hessprune.lab.report.run_report import ModelResult, RunReport
        >>> from hessprune.lab.report.scores import score_of
        >>> dense = ModelResult(accuracy=0.4, perplexity=20.0, loss=3.0, macs=2, params=2, size_bytes=8)
        >>> score = score_of(RunReport(title="a model", models={"dense": dense}))
        >>> score.name, score.text(score.of(dense)), score.change(25.0, 20.0)
        ('perplexity', '20', '+25 %')
    """
    return ACCURACY if report.models["dense"].perplexity is None else PERPLEXITY


def described(report: RunReport, result: ModelResult) -> str:
    """Return the score of one model as text."""
    score = score_of(report)
    return score.text(score.of(result))
