"""What the stages of a run share, and the values that they hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.lab.data import Dataset, ImageBatches, load_dataset
from hessprune.lab.data.dataset import Split
from hessprune.lab.models import build_model
from hessprune.lab.settings import RunSettings
from hessprune.lab.store import Stage, StageStore
from hessprune.methods.values import Saliency
from hessprune.planning.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What all stages of one run share."""

    settings: RunSettings
    data: Dataset
    data_root: Path
    store: StageStore
    device: torch.device

    @property
    def example(self) -> Tensor:
        """One normalised image, `(1, C, H, W)`."""
        return next(iter(self.data.batches("calibration", 1)))[0]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Return the methods that stand beside the recipe's own."""
        wanted = self.settings.report.baselines
        return tuple(m for m in ("magnitude", "random") if wanted and m != self.settings.prune.method)

    def batches(self, split: Split) -> ImageBatches:
        """Return a split in its own order, without augmentation."""
        return self.data.batches(split, self.settings.data.batch_size, shuffle=False)

    def fresh_model(self) -> nn.Module:
        """Build the dense network with initial weights, on the run's device."""
        classes, channels, seed = self.data.num_classes, self.data.input_shape[0], self.settings.seed
        model = build_model(self.settings.model.name, num_classes=classes, in_channels=channels, seed=seed)
        return model.to(self.device)

    @property
    def data_key(self) -> list[Any]:
        """What stages that read the data depend on."""
        data = self.data
        return [data.fingerprint, data.mean, data.std, self.settings.data.batch_size, self.device.type]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that a stage left, with the history of its training, if any."""

    model: nn.Module
    stage: Stage
    history: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The saliencies of one method, and the plan at the run's budget."""

    saliency: Saliency
    plan: Plan
    scored: Stage
    planned: Stage

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.saliency.provenance["method"]


def open_run(settings: RunSettings, out: Path, data_root: Path) -> Run:
    """Open the folder of finished stages, and load the data."""
    store, device = StageStore(out / "stages"), device_for(settings.device)
    section = settings.data
    data = load_dataset(
        section.source,
        root=None if section.root is None else data_root / section.root,
        seed=settings.seed,
        validation_size=section.validation_size,
        calibration_size=section.calibration_size,
    )
    if section.mean is not None and section.std is not None:
        data = data.with_normalisation(section.mean, section.std)
    return Run(settings=settings, data=data, data_root=data_root, store=store, device=device)


def device_for(name: str) -> torch.device:
    """Return the device of that name; `"auto"` is CUDA where there is one.

    Raises:
        ArgumentError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("`device` must be available, got 'cuda', which torch does not see. Use cpu or auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
