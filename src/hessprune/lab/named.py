"""Prune a model by its name, without a recipe: the value behind `hessprune prune`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprune.costs.budget import Budget
from hessprune.deploy.evaluation import evaluate
from hessprune.errors import ArgumentError
from hessprune.foundation.files import writable_folder
from hessprune.foundation.formatting import shown
from hessprune.foundation.modules import device_of, predict
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import to_device
from hessprune.lab.calibration import Calibration, open_calibration
from hessprune.lab.context import device_for
from hessprune.lab.losses import loss_by_name
from hessprune.lab.models import build_model, load_weights
from hessprune.lab.models.registry import file_of
from hessprune.lab.models.zoos import ZooName, example_of
from hessprune.methods.method import METHODS
from hessprune.methods.text import as_method
from hessprune.planning.ranking import Ranking
from hessprune.pruning.prune import PruneResult, prune

QUANTITIES = ("macs", "params", "units", "latency_ms", "kv_cache")
EVALUATED = 1000
"""Samples on which accuracy is measured, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedModel:
    """A model by name, as the command line takes it.

    Attributes:
        name: As for `build_model`.
        weights: A checkpoint that must fit.
        num_classes: Outputs, for factories that take it.
        shape: Of one sample, where no data tell it.
    """

    name: str
    weights: Path | None = None
    num_classes: int | None = None
    shape: tuple[int, ...] | None = None

    def build(self, num_classes: int | None = None, in_channels: int | None = None) -> nn.Module:
        """Return the model with its weights; classes and channels of the data are for those that take any."""
        zoo = ZooName.read(self.name)
        given = self.num_classes if self.num_classes is not None or zoo else num_classes
        model = build_model(self.name, num_classes=given, in_channels=None if zoo else in_channels)
        if self.weights is not None:
            load_weights(model, self.weights)
        return model

    @property
    def is_fresh(self) -> bool:
        """True if the weights are drawn at random, as far as the name tells."""
        zoo = ZooName.read(self.name)
        own = zoo.has_weights if zoo else file_of(self.name, Path()) is not None or ":" in self.name
        return self.weights is None and not own


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedResult:
    """The result of `prune_named`, with notes for the user."""

    result: PruneResult
    folder: Path
    load: str
    """The lines of Python that read the model back."""
    accuracy: tuple[float, float, int] | None = None
    """Before and after, on so many validation samples; None where labels do not fit the outputs."""
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        plan = self.result.plan
        names = ("dense", "pruned", "num_samples")
        return {
            **self.facts,
            "macs": [plan.cost_before.macs, plan.cost_after.macs],
            "params": [plan.cost_before.params, plan.cost_after.params],
            "units": {group.name: [group.num_units, len(plan.kept[group.name])] for group in plan.groups},
            "accuracy": None if self.accuracy is None else dict(zip(names, self.accuracy, strict=True)),
            "folder": str(self.folder),
            "load": self.load,
            "notes": list(self.notes),
        }


def prune_named(
    model: NamedModel,
    out: Path | None = None,
    *,
    budget: str,
    calibration: str | None = None,
    method: str = "joint",
    samples: int = 512,
    ranking: Ranking | None = None,
    seed: int = 0,
) -> NamedResult:
    """Prune a model by name to a budget, and save it for `hp.load`.

    Args:
        model: Name, weights and shape.
        out: Receives `model.safetensors` and `plan.json`; `out/<name>` by default.
        budget: Such as `"macs=0.5"`.
        calibration: `SOURCE:PATH`, a path whose kind can be told, or `"digits"`. Labels are not trained on.
        method: The criterion; without calibration one that reads weights alone.
        samples: Samples to measure on.
        ranking: Floors, rounding and layers that stay.
        seed: Draws the samples.

    Returns:
        The pruned model, its plan, and the accuracy before and after where labels fit.

    Raises:
        HessPruneError: One clear line: a name, a path or a number does not fit.
    """
    allowed = budget_of(budget)
    as_method(method)
    folder = writable_folder(out or Path("out") / re.sub(r"[^\w.-]+", "-", model.name).strip("-"))
    device = device_for("auto")
    if calibration is None:
        dense, result = _without_data(model, allowed, method, ranking, seed, device)
        data, accuracy = None, None
    else:
        data = open_calibration(calibration, model.name, samples=samples, seed=seed)
        dense = model.build(data.num_classes, data.in_channels).to(device).eval()
        data = data.fitted_to(dense, model.shape)
        example, batches = to_device(data.example, device), data.batches("calibration")
        with progress_bar("pruning"):
            result = prune(dense, example, batches, budget=allowed, method=method, ranking=ranking, seed=seed)
        accuracy = _accuracies(dense, result.model, data)
    result.save(folder)
    notes = [*(data.notes if data else ("without data: nothing was refitted or measured",))]
    if model.is_fresh:
        notes.append("the weights were drawn at random: name a checkpoint with --weights")
    return NamedResult(
        result=result,
        folder=folder,
        load=_loading(model, folder, data),
        accuracy=accuracy,
        notes=tuple(notes),
        facts={"model": model.name, "method": method, "budget": budget, "calibration": calibration, "seed": seed},
    )


def budget_of(text: str) -> Budget:
    """Read a budget such as `macs=0.5` or `params=50%`.

    Raises:
        ArgumentError: The text is no quantity with a value.

    Example:
        >>> from hessprune.lab.named import budget_of
        >>> budget_of("macs=0.5"), budget_of("latency_ms=50%")
        (Budget(macs=0.5), Budget(latency_ms='50%'))
    """
    quantity, _, value = text.partition("=")
    try:
        number: float | str = value if value.endswith("%") else float(value)
    except ValueError:
        number = ""
    if quantity not in QUANTITIES or number == "":
        listed = ", ".join(QUANTITIES)
        raise ArgumentError(
            f"`budget` must be QUANTITY=VALUE with one of {listed}, got {shown(text)}. Write macs=0.5 to keep half"
        )
    bound: Any = {quantity: number}
    return Budget(**bound)


def shape_of(text: str | None) -> tuple[int, ...] | None:
    """Read a shape such as `3,224,224`.

    Raises:
        ArgumentError: The text is no such list.
    """
    if text is None:
        return None
    sizes = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) < 2**31 for part in sizes):
        raise ArgumentError(f"`shape` must be positive integers with commas, got {shown(text)}. Write 3,32,32")
    return tuple(int(part) for part in sizes)


def _without_data(
    model: NamedModel, budget: Budget, method: str, ranking: Ranking | None, seed: int, device: torch.device
) -> tuple[nn.Module, PruneResult]:
    """Prune by a method that reads weights alone; the inputs only tell shapes."""
    if as_method(method).needs is not None:
        free = [name for name, kind in METHODS.items() if kind.needs is None]
        raise ArgumentError(
            f"`calibration` must be given for method {method!r}, which measures on samples. Name data, such as "
            f"image-folder:PATH or file.npz, or take one of {', '.join(free)}"
        )
    zoo = ZooName.read(model.name)
    if model.shape is None and zoo is None:
        raise ArgumentError(
            f"`shape` must be given for model {shown(model.name)} without calibration. Write --shape 3,32,32"
        )
    dense = model.build(None, model.shape[0] if model.shape and len(model.shape) == 3 else None).to(device).eval()
    example = example_of(dense, model.shape) if zoo else torch.zeros(1, *(model.shape or ()), device="cpu")
    result = prune(
        dense, example, [example], budget=budget, method=method, compensate=False, ranking=ranking, seed=seed
    )
    return dense, result


def _accuracies(dense: nn.Module, pruned: nn.Module, data: Calibration) -> tuple[float, float, int] | None:
    """Return the accuracy of both on validation samples, where the labels can be those of the outputs."""
    with torch.no_grad(), evaluation_mode(dense):
        logits = predict(dense, to_device(data.example, device_of(dense)))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] != data.num_classes:
        return None
    batches = _First(data.batches("validation"), -(-EVALUATED // data.batch_size))
    before, after = (evaluate(model, batches, loss_fn=loss_by_name("cross_entropy")) for model in (dense, pruned))
    return before.accuracy or 0.0, after.accuracy or 0.0, before.num_samples


@dataclass(frozen=True, slots=True)
class _First:
    """The first batches of others, again and again."""

    batches: Any
    number: int

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.number)

    def __len__(self) -> int:
        return min(len(self.batches), self.number)


def _loading(model: NamedModel, folder: Path, data: Calibration | None) -> str:
    """Return the lines that read the model back."""
    zoo = ZooName.read(model.name)
    if zoo is not None and zoo.has_weights:
        return f'import hessprune as hp\nmodel = hp.load("{folder.as_posix()}")'
    channels = data.in_channels if data else (model.shape or (3,))[0]
    classes = model.num_classes if model.num_classes is not None or zoo else data.num_classes if data else None
    call = f'build_model("{model.name}", num_classes={classes}, in_channels={None if zoo else channels})'
    lines = ["import hessprune as hp", "from hessprune.lab.models import build_model"]
    return "\n".join([*lines, f'model = hp.load("{folder.as_posix()}", lambda: {call})'])
