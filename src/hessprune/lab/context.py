"""What the stages of a run share, and the models that they hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.lab.data.batches import ImageBatches
from hessprune.lab.data.dataset import Dataset, Split
from hessprune.lab.data.sources import load_dataset
from hessprune.lab.losses import loss_by_name
from hessprune.lab.models.registry import build_model
from hessprune.lab.settings import RunSettings
from hessprune.lab.store import Stage, StageStore


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
        asked = self.settings.report.baselines
        return tuple(name for name in ("magnitude", "random") if asked and name != self.settings.prune.method)

    @property
    def loss_fn(self) -> Any:
        """The loss of the recipe."""
        return loss_by_name(self.settings.loss)

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
        """The data, their reading and the loss, for stages that depend on them."""
        data, settings = self.data, self.settings
        key = [data.fingerprint, data.mean, data.std, settings.data.batch_size, self.device.type]
        return key if settings.loss == "cross_entropy" else [*key, settings.loss]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that a stage left, with the history of its training, if any."""

    model: nn.Module
    stage: Stage
    history: Sequence[Mapping[str, Any]] = ()


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
