"""Models of other packages by name: `hf:FOLDER`, `timm:NAME`, `torchvision:NAME`; imported when asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError, CheckpointError, MissingDependencyError
from hessprune.foundation.checks import nearest
from hessprune.foundation.formatting import shortened, shown
from hessprune.foundation.hashing import file_sha256
from hessprune.foundation.imports import import_advice, zoo_import
from hessprune.foundation.quiet import quiet
from hessprune.lab.models.folders import check_folder, folder_of, gguf_in, load_gguf

FOLDER = "hf"
HEADS = ("AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoModelForAudioClassification")
"""Classes of transformers that classify, the first that knows a config is taken."""
IMAGE = (3, 224, 224)
TOKENS = 64
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True, kw_only=True, slots=True)
class ZooName:
    """A name of a package's model.

    Example:
        >>> ZooName.read("timm:resnet10t").name, ZooName.read("torchvision.models:resnet18")
        ('resnet10t', None)
    """

    zoo: str
    name: str

    @classmethod
    def read(cls, text: str) -> "ZooName | None":
        """Split a model's name, if it is one of a package."""
        zoo, colon, name = text.partition(":")
        return cls(zoo=zoo, name=name) if colon and zoo in _BUILDERS else None

    @property
    def has_weights(self) -> bool:
        """Whether the name stands for weights, too."""
        return self.zoo == FOLDER

    def below(self, root: Path) -> "ZooName":
        """Return the name with its folder as a path: relative to a root unless it is absolute, or in a package."""
        return ZooName(zoo=self.zoo, name=str(folder_of(self.name, root))) if self.has_weights else self

    def key(self) -> list[str]:
        """Return what decides the model: its name, or the content of its folder."""
        if not self.has_weights:
            return [self.zoo, self.name]
        files = [path for pattern in ("config.json", *WEIGHTS) for path in sorted(Path(self.name).glob(pattern))]
        return [self.zoo, *[f"{path.name} {file_sha256(path)}" for path in files]]

    def build(self, num_classes: int | None, in_channels: int | None) -> nn.Module:
        """Return the model: of a folder with its weights, else with fresh ones.

        Args:
            num_classes: Outputs; None leaves them as they are.
            in_channels: Channels of the images; None leaves them as they are.

        Raises:
            ArgumentError: There is no such model.
        """
        return _BUILDERS[self.zoo](self.name, num_classes, in_channels)


def example_of(model: nn.Module, shape: tuple[int, ...] | None) -> Any:
    """Return inputs for a model of a package: one sample of a shape, or of the shape that the model is made for.

    Args:
        model: From a zoo.
        shape: `(C, H, W)` of an image, or `(T,)` for a sentence of T tokens; None for the model's own.
    """
    config: Any = getattr(model, "config", None)
    if getattr(model, "main_input_name", "") == "input_ids":
        size = (1, *(shape or (min(TOKENS, getattr(config, "max_position_embeddings", TOKENS)),)))
        tokens = torch.arange(size[-1], device="cpu").expand(size) % config.vocab_size
        return {"input_ids": tokens.clone(), "attention_mask": torch.ones(size, dtype=torch.int64, device="cpu")}
    images: Tensor = torch.zeros(1, *(shape or _image_shape(model)), device="cpu")
    return images


def _image_shape(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of the images that a model is made for."""
    described: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)  # timm's
    if isinstance(described, Mapping) and "input_size" in described:
        return tuple(described["input_size"])
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return (getattr(config, "num_channels", 3), size, size)
    return IMAGE


def _from_folder(name: str, num_classes: int | None, in_channels: int | None) -> nn.Module:
    """Build a model of transformers, with the weights of its folder."""
    del in_channels
    check_folder(name)
    if gguf_in(name) is not None:
        return load_gguf(name, zoo_import("transformers", "AutoModelForCausalLM"))
    transformers = zoo_import("transformers", "AutoConfig", *HEADS)
    options = {} if num_classes is None else {"num_labels": num_classes}
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, **options)
            builder = _class_for(transformers, config, num_classes)
            weights = any(True for pattern in WEIGHTS for _ in Path(name).glob(pattern))
            if not weights:
                raise FileNotFoundError("no *.safetensors beside config.json")
            model, found = builder.from_pretrained(
                name, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (ArgumentError, CheckpointError):
        raise
    except ImportError as error:  # transformers imports a class when it is used
        raise MissingDependencyError(import_advice("transformers", error)) from error
    except Exception as error:  # transformers raises whatever its parsers trip over
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise CheckpointError(
            f"folder {shown(name, 160)} must hold a model of transformers, got {type(error).__name__}: {reason}. "
            "Save it again with save_pretrained."
        ) from error
    _check_complete(model, found, name)
    return model


def _class_for(transformers: Any, config: Any, num_classes: int | None) -> Any:
    """Return the class that a config names, or one that classifies where the number of classes is given."""
    named = [name for name in (config.architectures or ()) if hasattr(transformers, name)]
    if named and (num_classes is None or named[0].endswith("Classification")):
        return getattr(transformers, named[0])
    for head in HEADS:
        known = getattr(transformers, head)
        if type(config) in known._model_mapping:
            return known
    raise ArgumentError(
        f"a model of type {config.model_type!r} must have a class that classifies in transformers, got none. "
        "Build it in a function, and name that: package.module:function"
    )


def _check_complete(model: nn.Module, found: Mapping[str, Any], folder: str) -> None:
    """Raise where weights of the body are missing: transformers would draw them at random."""
    body = getattr(model, "base_model_prefix", "")
    missing = [name for name in sorted(found["missing_keys"]) if not body or name.startswith(f"{body}.")]
    missing += [str(key) for key in sorted(map(str, found["mismatched_keys"]))]
    missing = [name for name in missing if ".pooler." not in f".{name}"]  # bodies without one get a fresh one
    if missing:
        raise CheckpointError(
            f"weights in {shown(folder, 160)} must fit its config.json, got no fitting {shortened(missing, 5)} "
            f"({len(missing)} in all). Copy both files from one model."
        )


def _timm(name: str, num_classes: int | None, in_channels: int | None) -> nn.Module:
    """Build a model of timm with fresh weights."""
    timm = zoo_import("timm", "create_model")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    arguments = {"num_classes": num_classes, "in_chans": in_channels}
    with quiet():
        return timm.create_model(name, **{key: value for key, value in arguments.items() if value is not None})


def _torchvision(name: str, num_classes: int | None, in_channels: int | None) -> nn.Module:
    """Build a model of torchvision with fresh weights."""
    del in_channels
    models = zoo_import("torchvision", "models").models
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    with quiet():
        return models.get_model(name, weights=None, **arguments)


def _unknown(package: str, name: str, known: list[str]) -> ArgumentError:
    near = nearest(name, known) or f" It knows {len(known)}."
    return ArgumentError(f"`name` must be a model of {package}, got {shown(name)}.{near}")


_BUILDERS: Mapping[str, Callable[[str, int | None, int | None], nn.Module]] = {
    FOLDER: _from_folder,
    "timm": _timm,
    "torchvision": _torchvision,
}
