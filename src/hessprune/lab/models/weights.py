"""Weights from other people's checkpoints: wrappers' prefixes, nested dicts and renamed classifiers included."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hessprune.errors import CheckpointError
from hessprune.foundation.files import exists
from hessprune.foundation.formatting import first_line, shortened, shown

PREFIXES = ("module.", "model.", "_orig_mod.")
NESTS = ("state_dict", "model_state_dict", "model", "net")
SHOWN = 8
LONGEST = 100
DEEPEST = 16
"""Nested dicts: a damaged file can hold itself."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights into `model`, all of them or none.

    Reads safetensors and torch files, the latter as plain tensors only: a checkpoint executes nothing. Looks inside
    `"state_dict"` and the like, drops the prefixes `module.`, `model.` and `_orig_mod.`, and accepts a layer under
    another name if it is the only one missing and one stranger has exactly its shapes, as a renamed classifier does.

    Args:
        model: Takes the weights in place, in its own dtype and on its own device.
        path: A `.safetensors` file, or anything that `torch.save` wrote.

    Raises:
        CheckpointError: The file is missing, unreadable, or does not fit; all keys that do not fit are listed by kind,
            and the model is unchanged.
    """
    path = Path(path)
    state = _without_prefixes(_read(path), model.state_dict())
    state = _with_renamed_layer(state, model.state_dict())
    _check_fit(model, state, path)
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # kinds of tensors that cannot be copied into others
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"checkpoint {str(path)!r} must fit {type(model).__name__}, got: {reason}.") from error


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file into one flat dict of tensors."""
    if not exists(path) or not path.is_file():
        raise CheckpointError(f"checkpoint {shown(str(path), 160)} must be an existing file. Check the path.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except Exception as error:  # broken bytes fail inside the parsers with whatever they trip over
        reason = first_line(error).partition(". ")[0]
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read ({reason}): it is truncated, no weights file, or holds more "
            "than plain tensors. Copy it again, or save its state_dict as safetensors."
        ) from error
    return _flat(content, path)


def _load_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _flat(content: Any, path: Path) -> dict[str, Tensor]:
    """Descend to the mapping that holds the tensors, at most to a depth that no checkpoint has."""
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            break
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        nested = next((content[key] for key in NESTS if isinstance(content.get(key), Mapping)), None)
        if nested is None and tensors:
            return _plain(tensors, path)
        content = nested
    raise CheckpointError(
        f"checkpoint {str(path)!r} must hold a dict of tensors, plain or under {', '.join(map(repr, NESTS))}. "
        "Save model.state_dict()."
    )


def _plain(tensors: Mapping[Any, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors if all are dense numbers under names.

    Raises:
        CheckpointError: A key is no name, or a tensor is sparse, nested, quantised or without numbers.
    """
    problems = [f"the key {str(key)[:40]!r}" for key in tensors if not isinstance(key, str)]
    problems += [f"{_kind(value)} {str(key)[:80]!r}" for key, value in tensors.items() if _kind(value)]
    if problems:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must hold plain tensors by name, got {_shown(problems)}. "
            "Save the state_dict of the float model."
        )
    return dict(tensors)


def _kind(value: Tensor) -> str:
    """Return the kind of a tensor that is not plain; empty for a plain one."""
    kinds = {"sparse": value.layout != torch.strided, "nested": value.is_nested, "quantised": value.is_quantized}
    return next((kind for kind, is_so in kinds.items() if is_so), "empty" if value.is_meta else "")


def _without_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop a wrapper's prefix as long as every key has it and the model does not."""
    while True:
        found = (prefix for prefix in PREFIXES if _all_start(state, prefix) and not _all_start(own, prefix))
        prefix = next(found, None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _all_start(keys: Iterable[str], prefix: str) -> bool:
    return all(key.startswith(prefix) for key in keys)


def _with_renamed_layer(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the one layer that fits the one layer the checkpoint lacks."""
    missing = _by_layer({key: value for key, value in own.items() if key not in state and not _is_counter(key)})
    strangers = _by_layer({key: value for key, value in state.items() if key not in own})
    if len(missing) != 1:
        return state
    ((layer, shapes),) = missing.items()
    fitting = [name for name, found in strangers.items() if found == shapes]
    if len(fitting) != 1:
        return state
    old, new = f"{fitting[0]}.", f"{layer}."
    return {new + key.removeprefix(old) if key.rpartition(".")[0] == fitting[0] else key: state[key] for key in state}


def _by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
    """Group the shapes of a state dict by module: `{"linear": {"weight": …, "bias": …}}`."""
    layers: dict[str, dict[str, torch.Size]] = {}
    for key, value in state.items():
        layer, _, attribute = key.rpartition(".")
        layers.setdefault(layer, {})[attribute] = value.shape
    return layers


def _is_counter(key: str) -> bool:
    """Old checkpoints lack BatchNorm's batch counters, which no output depends on."""
    return key.endswith("num_batches_tracked")


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise with every key that does not fit, by kind."""
    own = model.state_dict()
    shared = [key for key in own if key in state]
    problems = {
        "missing": [repr(key) for key in own if key not in state and not _is_counter(key)],
        "unexpected": [repr(key) for key in state if key not in own],
        "wrong shape": [
            f"{key!r} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in shared
            if state[key].shape != own[key].shape
        ],
        "wrong dtype": [
            f"{key!r} {state[key].dtype} instead of {own[key].dtype}" for key in shared if _loses(state[key], own[key])
        ],
    }
    listed = "; ".join(f"{kind} ({len(keys)}): {_shown(keys)}" for kind, keys in problems.items() if keys)
    if listed:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must fit {type(model).__name__}: {listed}. "
            "Build the model with the architecture, num_classes and in_channels of the checkpoint."
        )


def _loses(value: Tensor, own: Tensor) -> bool:
    """Return whether torch would drop an imaginary part, or take the integers of a quantised tensor for weights."""
    return (value.is_complex() and not own.is_complex()) or (own.is_floating_point() and not value.is_floating_point())


def _shown(names: Sequence[str]) -> str:
    return shortened([name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names], SHOWN)
