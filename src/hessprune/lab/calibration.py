"""Samples for `hessprune prune`: a source and a path in one text, read as the model expects them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.files import read_json
from hessprune.foundation.formatting import shown
from hessprune.lab.data.dataset import Dataset, Split
from hessprune.lab.data.image_dataset import ImageDataset
from hessprune.lab.data.image_folder import IMAGENET_MEAN, IMAGENET_STD, ImageFiles
from hessprune.lab.data.sentences import TextReading
from hessprune.lab.data.sources import BUILT_IN, TEXTS, available_sources, load_dataset
from hessprune.lab.models.folders import folder_of, gguf_in
from hessprune.lab.models.zoos import ZooName, example_of

BATCH_SIZE = 64
TEXTS_AT_ONCE = 2
"""Sequences in a batch: the logits of one are those of all words at all positions."""
TOKENS = {"tsv": 128, "wikitext": 512}
"""Most tokens of a sample, by source."""
PREPROCESSING = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A data set as one model reads it."""

    data: Dataset[Any]
    model_name: str
    notes: tuple[str, ...] = ()
    """Assumptions, one sentence each."""
    batch_size: int = BATCH_SIZE

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        return self.data.num_classes

    @property
    def in_channels(self) -> int | None:
        """Channels of the images, if they are images."""
        return self.data.in_channels

    @property
    def example(self) -> Any:
        """The inputs of one sample."""
        return self.data.example("calibration", 1)

    def batches(self, split: Split) -> Any:
        """Return the batches of a split in its own order, without augmentation."""
        return self.data.batches(split, self.batch_size, shuffle=False)

    def fitted_to(self, model: nn.Module, shape: tuple[int, ...] | None) -> "Calibration":
        """Return the same images, at the size and in the normalisation that a model is made for.

        Raises:
            ArgumentError: A shape is given that the samples do not have.
        """
        data, notes = self.data, []
        if not isinstance(data, ImageDataset):
            return self
        zoo = ZooName.read(self.model_name)
        if isinstance(data.train, ImageFiles):
            wanted = shape or (tuple(example_of(model, None).shape[1:]) if zoo else data.input_shape)
            data = data.with_image_size(wanted[-1])
        if shape is not None and tuple(shape) != data.input_shape:
            found = ",".join(map(str, data.input_shape))
            raise ArgumentError(
                f"`shape` must be that of the samples, got {shown(shape)}. Leave it out, or write {found}"
            )
        normalisation = None if zoo is None else _normalisation(model, zoo)
        if normalisation is not None and len(normalisation[0]) == data.in_channels:
            data = data.with_normalisation(*normalisation)
            notes.append(f"images are normalised as the model's package says: mean {_listed(normalisation[0])}")
        else:
            notes.append(f"images are normalised by their own statistics: mean {_listed(data.mean)}")
        return replace(self, data=data, notes=(*self.notes, *notes))


def open_calibration(text: str, model_name: str, *, samples: int = 512, seed: int = 0) -> Calibration:
    """Load the samples that a text names.

    Args:
        text: `SOURCE:PATH` with a source that recipes know, a path whose kind can be told, or `"digits"`.
        model_name: Whose tokenizer reads sentences, if it is `hf:FOLDER`.
        samples: Calibration samples.
        seed: Draws them.

    Raises:
        ArgumentError: The text names no source.
        DataError: The files are missing, or their kind cannot be told.

    Example:
        >>> from hessprune.lab.calibration import open_calibration
        >>> len(open_calibration("digits", "digits-resnet", samples=32).data.calibration)
        32
    """
    source, path = _split(text)
    zoo = ZooName.read(model_name)
    reading = _reading(folder_of(zoo.name, Path()), source) if source in TEXTS and zoo and zoo.has_weights else None
    data = load_dataset(source, root=path, seed=seed, calibration_size=samples, text=reading)
    size = BATCH_SIZE if data.has_classes else TEXTS_AT_ONCE
    return Calibration(data=data, model_name=model_name, batch_size=size)


def _reading(folder: Path, source: str) -> TextReading:
    """Return how a model of transformers reads texts, no longer than its table of positions."""
    config = {} if gguf_in(folder) else read_json(folder / "config.json")
    longest = config.get("max_position_embeddings") if isinstance(config, dict) else None
    usual = TOKENS[source]
    return TextReading(tokenizer=folder, max_length=min(usual, longest) if isinstance(longest, int) else usual)


def _split(text: str) -> tuple[str, Path | None]:
    """Return source and path of a text."""
    source, colon, path = text.partition(":")
    if source in available_sources() and (colon or source in BUILT_IN):
        return source, Path(path) if colon else None
    kind = _kind(Path(text))
    if kind is None:
        sources = ", ".join(available_sources())
        raise ArgumentError(
            f"`calibration` must be SOURCE:PATH with one of {sources}, or a file or folder of such a kind, got "
            f"{shown(text, 160)}. Write for example image-folder:PATH"
        )
    return kind, Path(text)


def _kind(path: Path) -> str | None:
    """Tell the kind of a file or folder by the names in it."""
    names = {".npz": "npz", ".parquet": "parquet", ".tsv": "tsv"}
    if path.is_file():
        return names.get(path.suffix)
    if not path.is_dir():
        return None
    if (path / "train").is_dir():
        return "image-folder"
    for pattern, kind in (
        ("train.tsv", "tsv"),
        ("valid.txt", "wikitext"),
        ("data_batch_1", "cifar10"),
        ("*.npz", "npz"),
        ("*.parquet", "parquet"),
    ):
        if any(path.glob(pattern)):
            return kind
    return "cifar100" if (path / "meta").is_file() and (path / "train").is_file() else None


def _normalisation(model: nn.Module, zoo: ZooName) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of the images that a package's model was trained on, where the package says them."""
    described: Any = getattr(model, "pretrained_cfg", None)  # timm's
    if isinstance(described, dict) and described.get("mean") and described.get("std"):
        return tuple(described["mean"]), tuple(described["std"])
    if zoo.zoo == "torchvision":
        return IMAGENET_MEAN, IMAGENET_STD
    file = Path(zoo.name) / PREPROCESSING
    if not zoo.has_weights or not file.is_file():
        return None
    try:
        found = read_json(file)
        return tuple(map(float, found["image_mean"])), tuple(map(float, found["image_std"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{str(file)!r} must hold image_mean and image_std, got {type(error).__name__}. Save the processor again."
        ) from error


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
