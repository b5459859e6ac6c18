"""Models of transformers: a config beside the weights, from which their class builds the dense model again."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.errors import CheckpointError, MissingDependencyError
from hessprune.foundation.files import exists, read_json
from hessprune.foundation.imports import import_advice, zoo_import
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import seeded

CONFIG = "config.json"
DENSE = "dense_sizes"
"""The entry of a config that holds the numbers of the dense model, where those of the pruned one stand."""


def config_of(model: nn.Module) -> Any:
    """Return the config of a model of transformers; None for any other model."""
    config = getattr(model, "config", None)
    return config if hasattr(config, "to_json_string") and hasattr(config, "save_pretrained") else None


def dense_config(config: Any) -> Any:
    """Return the configuration of the dense model, from that of a pruned one."""
    for name, size in (getattr(config, DENSE, None) or {}).items():
        if size is None:
            vars(config).pop(name, None)
        else:
            setattr(config, name, size)
    vars(config).pop(DENSE, None)
    return config


def config_text(model: nn.Module) -> str:
    """Return the config as `save_pretrained` writes it, with the class of the model; empty for any other model."""
    config = config_of(model)
    if config is None:
        return ""
    described = json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}
    return json.dumps(described, indent=2, sort_keys=True) + "\n"


def attention_of(model: nn.Module) -> dict[str, str]:
    """Return the implementation of attention, which a config does not keep and which decides the last bits.

    Where the configs within the model's own have other ones, as that of a backbone may: all of them by their paths.
    """
    every = dict(_configs(config_of(model)))
    found = {path: getattr(config, "_attn_implementation", None) for path, config in every.items()}
    if not isinstance(found[""], str):
        return {}
    if len({*found.values()}) == 1:
        return {"attn_implementation": found[""]}
    told = {path: value for path, value in found.items() if isinstance(value, str)}
    return {"attn_implementation": json.dumps(told, sort_keys=True)}


def _configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config and all within it, with their paths."""
    yield path, config
    for name in getattr(config, "sub_configs", ()):
        if (part := getattr(config, name, None)) is not None:
            yield from _configs(part, f"{path}.{name}" if path else name)


def _attend_by(config: Any, attention: str) -> None:
    """Set the implementation of attention of each config that `attention_of` named."""
    told = json.loads(attention)
    for path, part in _configs(config):
        if path in told:
            part._attn_implementation_internal = told[path]  # without handing it on to the configs within


def factory_of(folder: Path, attention: str | None) -> Callable[[], nn.Module]:
    """Return a function that builds the dense model of a folder from its config.

    Raises:
        CheckpointError: There is no config, or transformers does not know its class.
        MissingDependencyError: transformers is not installed, or cannot be imported.
    """
    path = folder / CONFIG
    if not exists(path):
        raise CheckpointError(
            f"`factory` must be given for '{folder}', which holds no {CONFIG} of a Hugging Face model. "
            "Pass the function that builds the dense model: hp.load(folder, factory)."
        )
    described = read_json(path)
    names = described.get("architectures") if isinstance(described, dict) else None
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    transformers = zoo_import("transformers", "AutoConfig")
    try:
        cls = getattr(transformers, name, None) if name.isidentifier() else None
    except ImportError as error:  # transformers imports a class when it is used
        raise MissingDependencyError(import_advice("transformers", error)) from error
    if cls is None:
        raise CheckpointError(
            f"'{path}' must name a class of transformers under `architectures`, got {name!r}. "
            "Pass the function that builds the dense model: hp.load(folder, factory)."
        )
    is_told_apart = attention is not None and attention.startswith("{")
    options = {} if attention is None or is_told_apart else {"attn_implementation": attention}

    def build() -> nn.Module:
        try:
            with quiet(), seeded(0):
                config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **options)
                if attention is not None and is_told_apart:
                    _attend_by(config, attention)
                return cls(dense_config(config))
        except Exception as error:  # whatever a config that was written by hand trips over
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise CheckpointError(
                f"'{path}' must be a config that transformers {transformers.__version__} reads, got: {reason}. "
                "Pass the function that builds the dense model: hp.load(folder, factory)."
            ) from error

    return build


def saved_names(model: nn.Module) -> dict[str, str]:
    """Return the model's own names by those that `save_pretrained` writes, where these are other ones."""
    if config_of(model) is None:
        return {}
    loading = importlib.import_module("transformers.core_model_loading")
    own = {tensor.data_ptr(): name for name, tensor in model.state_dict().items()}
    with quiet():
        written = loading.revert_weight_conversion(model, dict(model.state_dict()))
    return {name: own[tensor.data_ptr()] for name, tensor in written.items() if tensor.data_ptr() in own}
