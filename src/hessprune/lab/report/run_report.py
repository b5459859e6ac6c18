"""The value a run leaves behind: everything measured, decided and set, as one JSON document.

`report.html` is drawn from this value alone, so a stored `report.json` can be drawn again, by any later version.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hessprune.lab.report.document import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResult:
    """What one model costs and achieves on the test split."""

    accuracy: float
    """Share of correct predictions, from 0 to 1."""
    loss: float
    """Mean cross-entropy over the samples."""
    macs: int
    """Multiply-adds for one sample."""
    params: int
    size_bytes: int
    """Bytes of the stored parameters and buffers."""
    latency_ms: float | None = None
    """Median time of one forward pass, in milliseconds."""
    latency_p10_ms: float | None = None
    latency_p90_ms: float | None = None
    num_samples: int = 0
    perplexity: float | None = None
    """Of the next word, for language models, whose accuracy is the share of next words that are the likeliest."""

    @property
    def accuracy_error(self) -> float:
        """Half-width of the 95 % interval of the accuracy, `1.96·√(p(1−p)/n)` with Laplace's add-one estimate of p."""
        if not self.num_samples:
            return 0.0
        p = (self.accuracy * self.num_samples + 1) / (self.num_samples + 2)
        return 1.96 * (p * (1 - p) / self.num_samples) ** 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One point of accuracy against cost: a plan at one budget, applied, not fine-tuned."""

    method: str
    macs_fraction: float
    """MACs kept, as a share of the dense model's."""
    accuracy: float
    """On the validation split."""
    draw: int = 0
    """The draw of calibration samples."""
    refitted: bool = True
    """True if the surviving layers were refitted."""
    perplexity: float | None = None
    """As `accuracy`, for language models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWidth:
    """The output channels of one layer before and after; layers of one `group` are coupled and shrink together."""

    name: str
    group: str
    dense: int
    kept: int
    """With their full filters."""
    implanted: int = 0
    """With a low-rank stand-in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One layer that multiplies, before and after."""

    name: str
    width: tuple[int, int]
    """Output channels."""
    macs: tuple[int, int]
    params: tuple[int, int]
    why: str = ""
    """The reason for the width: saliency per cost, a floor, rounding, or what freezes it."""
    ms: tuple[float, float] | None = None
    """Milliseconds of the layer's own call in torch; None where it was not timed by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSaliency:
    """The saliency of every unit of one group, and which units stayed."""

    group: str
    values: tuple[float, ...]
    kept: tuple[bool, ...]
    implanted: tuple[bool, ...] = ()
    """Which of the kept ones keep a low-rank stand-in; empty if none does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPoint:
    """One epoch of a training stage; losses are means over samples."""

    epoch: int
    """From 1; 0 is the model before training."""
    train_loss: float | None
    validation_loss: float
    validation_accuracy: float
    validation_perplexity: float | None = None
    """For language models, which are chosen by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """How the saliencies were obtained, and how sure they are."""

    method: str
    estimator: str = ""
    kind: str = ""
    """`hessian` or `ggn`; empty for methods that use no curvature."""
    relative_error: float | None = None
    """Median over units of standard error / saliency; 0 means computed exactly, None means not known."""
    num_samples: int = 0
    """Calibration samples."""
    num_backwards: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport(Document):
    """All results of one run; see each field. `to_json` and `from_json` are inverse to each other."""

    file = "a run's report.json"
    remedy = "Run the recipe again."
    title: str
    models: Mapping[str, ModelResult]
    """By stage, in order: `dense`, `pruned`, `finetuned`, and whatever stages come later."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """Validation accuracy, or perplexity, by stage."""
    baselines: Mapping[str, ModelResult] = field(default_factory=dict)
    """Other methods at the same budget, such as `"magnitude, fine-tuned"`."""
    curve: tuple[CurvePoint, ...] = ()
    layers: tuple[LayerWidth, ...] = ()
    table: tuple[LayerRow, ...] = ()
    """Every layer that multiplies, in the order in which the model runs them."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the stages, by name."""
    date: str = ""
    """Of the day on which the run ended, as in 2026-11-29."""
    loading: str = ""
    """The lines of Python that read the model back, from within the folder of the report."""
    estimate: Estimate | None = None
    saliency: tuple[GroupSaliency, ...] = ()
    history: Mapping[str, tuple[EpochPoint, ...]] = field(default_factory=dict)
    """Epochs by training stage: `pretrain`, `finetune`."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """The plan's own JSON."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The full recipe, defaults included."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name, sizes of the splits and number of classes."""
    data_fingerprint: str = ""
    notes: tuple[str, ...] = ()
    """What a reader has to know to read the numbers, one sentence each."""

    @property
    def final(self) -> ModelResult:
        """The last model of the pipeline."""
        return list(self.models.values())[-1]

    @property
    def macs_fraction(self) -> float:
        """MACs kept by the final model."""
        return self.final.macs / self.models["dense"].macs

    @property
    def points(self) -> float:
        """Final minus dense accuracy, in percentage points."""
        return 100 * (self.final.accuracy - self.models["dense"].accuracy)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict: the models by stage at the top level, every other field under its name."""
        document = asdict(self)
        return {"title": document.pop("title"), **document.pop("models"), **document}

    @classmethod
    def arguments(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the class."""
        known = {item.name for item in fields(cls)} - {"models"}
        rest = {key: value for key, value in document.items() if key in known}
        return rest | {
            "models": {key: ModelResult(**value) for key, value in document.items() if key not in known},
            "baselines": {name: ModelResult(**value) for name, value in rest["baselines"].items()},
            "curve": tuple(CurvePoint(**point) for point in rest["curve"]),
            "layers": tuple(LayerWidth(**layer) for layer in rest["layers"]),
            "table": tuple(_layer_row(row) for row in rest.get("table", ())),
            "estimate": rest["estimate"] and Estimate(**rest["estimate"]),
            "saliency": tuple(_group_saliency(group) for group in rest["saliency"]),
            "history": {k: tuple(EpochPoint(**epoch) for epoch in epochs) for k, epochs in rest["history"].items()},
            "notes": tuple(rest["notes"]),
        }


def _layer_row(value: Mapping[str, Any]) -> LayerRow:
    width, macs, params = (tuple(value[key]) for key in ("width", "macs", "params"))
    ms = value.get("ms")
    return LayerRow(
        name=value["name"],
        width=width,
        macs=macs,
        params=params,
        why=value["why"],
        ms=None if ms is None else tuple(ms),
    )


def _group_saliency(value: Mapping[str, Any]) -> GroupSaliency:
    return GroupSaliency(group=value["group"], values=tuple(value["values"]), kept=tuple(value["kept"]))
