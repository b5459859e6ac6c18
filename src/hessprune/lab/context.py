"""What the stages of a run share, and the models that they hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.hashing import file_sha256, weights_sha256
from hessprune.foundation.identity import modules_sha256
from hessprune.foundation.words import next_word
from hessprune.lab.data.batches import Batches
from hessprune.lab.data.dataset import Dataset, Split
from hessprune.lab.data.sentences import TextReading
from hessprune.lab.data.sources import load_dataset
from hessprune.lab.losses import loss_by_name
from hessprune.lab.models.folders import check_folder, folder_of
from hessprune.lab.models.registry import build_model, file_of, is_factory
from hessprune.lab.models.zoos import ZooName
from hessprune.lab.settings import RunSettings
from hessprune.lab.store import Stage, StageStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What all stages of one run share."""

    settings: RunSettings
    data: Dataset[Any]
    data_root: Path
    store: StageStore
    device: torch.device

    @property
    def example(self) -> Any:
        """The inputs of one sample: a normalised image `(1, C, H, W)`, or a sentence of the most tokens, by name."""
        return self.data.example("calibration", 1)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Return the methods that stand beside the recipe's own."""
        asked = self.settings.report.baselines
        return tuple(name for name in ("magnitude", "random") if asked and name != self.settings.prune.method)

    @property
    def loss_fn(self) -> Any:
        """The loss of the recipe."""
        return loss_by_name(self.settings.loss)

    @property
    def metric(self) -> Literal["perplexity"] | None:
        """The metric of language models; others are judged by accuracy."""
        return "perplexity" if self.loss_fn is next_word else None

    @property
    def pruning_loss(self) -> Any:
        """The loss that judges what is pruned: the recipe's, or the distance to the dense model for language models."""
        return None if self.loss_fn is next_word else self.loss_fn

    def batches(self, split: Split) -> Batches[Any]:
        """Return a split in its own order, without augmentation."""
        return self.data.batches(split, self.settings.data.batch_size, shuffle=False)

    def fresh_model(self) -> nn.Module:
        """Build the dense network with initial weights, or those that come with its name, on the run's device."""
        data, settings = self.data, self.settings
        model = build_model(
            settings.model.name,
            num_classes=data.num_classes if data.has_classes else None,
            in_channels=data.in_channels,
            seed=settings.seed,
            root=self.data_root,
        ).to(self.device)
        if settings.model.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        return model

    @property
    def model_key(self) -> list[str]:
        """The network as it is built: its name, and the content of its folder, or what its own code computes."""
        name = self.settings.model.name
        zoo, file = ZooName.read(name), file_of(name, self.data_root)
        if zoo is not None:
            return zoo.below(self.data_root).key()
        content = [file_sha256(file)] if file is not None and file.is_file() else []
        if not is_factory(name):
            return [name]
        model = self.fresh_model()  # a function may read weights, too
        return [name, *content, modules_sha256(model), weights_sha256(model)]

    @property
    def data_key(self) -> list[Any]:
        """The data, their reading and the loss, for stages that depend on them."""
        data, settings = self.data, self.settings
        key = [data.fingerprint, *data.reading, settings.data.batch_size, self.device.type]
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
        test_size=section.test_size,
        text=_text_reading(settings, data_root),
    )
    if section.mean is not None and section.std is not None:
        data = data.with_normalisation(section.mean, section.std)
    return Run(settings=settings, data=data, data_root=data_root, store=store, device=device)


def _text_reading(settings: RunSettings, data_root: Path) -> TextReading | None:
    """Return how sentences are read: by the recipe's tokenizer, or by that of the model's folder."""
    section, zoo = settings.data, ZooName.read(settings.model.name)
    own = None if zoo is None or not zoo.has_weights else zoo.name
    place = section.tokenizer or own
    if place is None:
        return None
    folder = folder_of(place, data_root)
    if section.tokenizer is None:
        check_folder(str(folder))
    return TextReading(tokenizer=folder, max_length=section.max_length, sort=section.sort)


def device_for(name: str) -> torch.device:
    """Return the device of that name; `"auto"` is CUDA where there is one.

    Raises:
        ArgumentError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("`device` must be available, got 'cuda', which torch does not see. Use cpu or auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
