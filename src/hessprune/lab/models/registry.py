"""Models by name: the papers' networks, those of other packages, or any factory of the user's."""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_range, nearest
from hessprune.foundation.formatting import shown
from hessprune.foundation.imports import module_of_file
from hessprune.foundation.state import seeded
from hessprune.lab.models.densenet import DenseNet
from hessprune.lab.models.mobilenet import MobileNetTiny
from hessprune.lab.models.preresnet import PreResNet
from hessprune.lab.models.resnet import ResNet
from hessprune.lab.models.vgg import VGG
from hessprune.lab.models.vit import VisionTransformer
from hessprune.lab.models.wide_resnet import WideResNet
from hessprune.lab.models.zoos import ZooName

Factory = Callable[..., nn.Module]

NUM_CLASSES = 10

RESNET_DEPTHS = (20, 32, 44, 56, 110)
MODELS: dict[str, Factory] = {
    **{f"resnet{depth}": partial(ResNet, depth, option="A") for depth in RESNET_DEPTHS},
    **{f"resnet{depth}-b": partial(ResNet, depth, option="B") for depth in RESNET_DEPTHS},
    "resnet20-narrow": partial(ResNet, 20, option="B", width=8),
    "preresnet29": partial(PreResNet, 29),
    "wrn28-8": partial(WideResNet, 28, widen=8),
    "wrn28-10": partial(WideResNet, 28, widen=10),
    "vgg16-bn": partial(VGG, 16),
    "vgg19-bn": partial(VGG, 19),
    "densenet40": partial(DenseNet, 40),
    "digits-resnet": partial(ResNet, 8, option="B"),
    "digits-resnet-wide": partial(ResNet, 8, option="B", width=32),
    "digits-resnet-narrow": partial(ResNet, 8, option="B", width=4),
    "mobilenet-tiny": MobileNetTiny,
    "vit-compact": VisionTransformer,
}


def available_models() -> tuple[str, ...]:
    """Return the names that `build_model` knows.

    Example:
        >>> "resnet56" in available_models()
        True
    """
    return tuple(MODELS)


def build_model(
    name: str, *, num_classes: int | None, in_channels: int | None = 3, seed: int = 0, root: Path | str = "."
) -> nn.Module:
    """Build a model, with freshly drawn weights unless they come with the name; the random state is untouched.

    Args:
        name: One of `available_models()`, `"package.module:factory"`, `"path/to/file.py:factory"`, `"timm:NAME"`,
            `"torchvision:NAME"`, or `"hf:FOLDER"`, the folder of a Hugging Face model, whose weights are loaded. A
            factory is called with those of `num_classes` and `in_channels` that its signature names.
        num_classes: Outputs; None leaves them as the package has them, and stands for 10 elsewhere.
        in_channels: Channels of the images; None where the inputs have none.
        seed: Decides the weights that are drawn.
        root: What a relative FOLDER or file refers to.

    Returns:
        A new module.

    Raises:
        ArgumentError: The name is unknown, the factory cannot be found, or does not return an `nn.Module`.
        CheckpointError: The folder's weights do not fit its config.
        MissingDependencyError: The package is not installed, or cannot be imported.

    Example:
        >>> build_model("resnet20", num_classes=10).linear
        Linear(in_features=64, out_features=10, bias=True)
        >>> build_model("hessprune.lab.models.mobilenet:MobileNetTiny", num_classes=3).classifier
        Linear(in_features=160, out_features=3, bias=True)
    """
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None:
            check_range(argument, value, low=1, integer=True)
    zoo = ZooName.read(name)
    if zoo is not None:
        with seeded(seed):
            return zoo.below(Path(root)).build(num_classes, in_channels).train()
    factory = _resolve(name, Path(root))
    given = {"num_classes": num_classes or NUM_CLASSES, "in_channels": in_channels}
    arguments = _accepted(factory, name, {key: value for key, value in given.items() if value is not None})
    with seeded(seed):
        model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"factory {name!r} must return an nn.Module, got {type(model).__name__}.")
    return model


def file_of(name: str, root: Path) -> Path | None:
    """Return the file of a name such as `path/to/file.py:factory`."""
    path, colon, _ = name.rpartition(":")
    return root / path if colon and path.endswith(".py") else None


def is_factory(name: str) -> bool:
    """Return whether a name points to a user's own function."""
    return name not in MODELS and ":" in name and ZooName.read(name) is None


def _resolve(name: str, root: Path) -> Factory:
    """Look a name up in the registry, or import what it points to."""
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise ArgumentError(
            "`name` must be a known model, hf:FOLDER, timm:NAME, torchvision:NAME, package.module:factory or "
            f"file.py:factory, got {shown(name)}.{nearest(name, MODELS)} Known: {', '.join(MODELS)}."
        )
    path, _, attribute = name.rpartition(":")
    file = file_of(name, root)
    module = _import(path, name) if file is None else module_of_file(file)
    factory: Any = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value)]
        raise ArgumentError(f"module {path!r} must hold a callable {attribute!r}.{nearest(attribute, public)}")
    return cast("Factory", factory)


def _import(path: str, name: str) -> ModuleType:
    """Import the module of a factory's name."""
    try:
        return importlib.import_module(path)
    except Exception as error:  # importing a module runs it, so anything can happen
        raise ArgumentError(
            f"module {path!r} of `name` {name!r} cannot be imported ({type(error).__name__}: {error}). "
            "Install it, or run from the folder that holds it with that folder on PYTHONPATH."
        ) from error


def _accepted(factory: Factory, name: str, arguments: dict[str, int]) -> dict[str, int]:
    """Keep the arguments that the factory's signature names; `**kwargs` is taken to accept `num_classes`."""
    parameters = inspect.signature(factory).parameters.values()
    names = {parameter.name for parameter in parameters if _by_keyword(parameter)}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names.add("num_classes")
    for parameter in parameters:
        if _is_required(parameter) and parameter.name not in arguments:
            raise ArgumentError(
                f"factory {name!r} must be callable with num_classes and in_channels at most, got required "
                f"parameter {parameter.name!r}. Wrap it in a function that fixes the rest."
            )
    return {key: value for key, value in arguments.items() if key in names}


def _by_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    return parameter.default is parameter.empty and not variadic
