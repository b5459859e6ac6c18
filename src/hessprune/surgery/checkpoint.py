"""Checkpoints of pruned models as safetensors and JSON: without pickle, strict, for the same dense model."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError, CheckpointError
from hessprune.foundation.arrival import arrived, materialise
from hessprune.foundation.files import exists, replacing, sha256, writable_folder, write_text
from hessprune.foundation.formatting import shown
from hessprune.foundation.hashing import file_sha256, tensors_sha256
from hessprune.foundation.tensors import replace_tensors
from hessprune.planning.chain import Change, steps_of
from hessprune.planning.changes import change_from_json
from hessprune.surgery.fits import misshapen
from hessprune.surgery.pretrained import CONFIG, attention_of, config_text, factory_of, saved_names
from hessprune.surgery.replay import replay

WEIGHTS, PLAN, DTYPES = "model.safetensors", "plan.json", "dtypes"


def save(model: nn.Module, plan: Change, folder: str | Path) -> Path:
    """Write a pruned model: `model.safetensors` (its state) and `plan.json` (the plan that gives its shapes again).

    The header of the weights holds hashes of both, so that `load` notices a changed byte and files of two models. A
    model of transformers gets its `config.json`, too, from which `load` builds it; `save_pretrained` may write into
    the same folder, before or after.

    Args:
        model: The pruned model, fine-tuned or not.
        plan: The plan or widening between the dense model and this one; after several in a row
            `plan.then(next_plan)`.
        folder: Created if needed; files are replaced atomically.

    Returns:
        The folder.

    Raises:
        ArgumentError: `plan` is no plan.
        CheckpointError: The plan gives other shapes; nothing is written.
        OutputError: The folder cannot be written.

    Example:
        >>> import tempfile, torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.zeros(1, 4)
        >>> groups, saliency = hp.find_groups(net, x), {"0": torch.arange(8.0)}
        >>> plan = hp.make_plan(net, groups, saliency, hp.Budget(params=0.5), example_inputs=x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in hp.save(hp.apply_plan(net, plan), plan, folder).iterdir())
        ['model.safetensors', 'plan.json']
    """
    if not (hasattr(plan, "cost_after") and hasattr(plan, "to_json")):  # a result has costs, too
        raise ArgumentError(f"`plan` must be the plan that led to `model`, got {shown(plan)}. Pass result.plan.")
    model = arrived(model)
    check_shapes(model, plan)
    folder, text, state = writable_folder(folder), plan.to_json(), _unique_state(model)
    header = {"plan_sha256": sha256(text), "tensors_sha256": tensors_sha256(state)} | attention_of(model)
    header |= {DTYPES: json.dumps({name: str(buffer.dtype) for name, buffer in _unsaved_numbers(model).items()})}
    with replacing(folder / WEIGHTS) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={"format": "pt"} | header)
    write_text(folder / PLAN, text)
    if config := config_text(model):
        write_text(folder / CONFIG, config)
    return folder


def load(
    folder: str | Path, factory: Callable[[], nn.Module] | None = None, *, device: torch.device | str = "cpu"
) -> nn.Module:
    """Read a pruned model back, bit for bit.

    Args:
        folder: The folder that `save` wrote.
        factory: Builds the dense model; its weights do not matter. Lazy layers see the plan's example first. A model
            of transformers needs none: it is built from its config.
        device: The device of the model.

    Returns:
        The pruned model in evaluation mode.

    Raises:
        ArgumentError: `factory` is a model, or returns none.
        CheckpointError: A file is missing, truncated or changed, the two files are of two models, the factory builds
            another model, or it is needed and not given.
        MissingDependencyError: There is no factory, and transformers cannot be imported.

    Example:
        >>> import tempfile, torch, hessprune as hp
        >>> factory = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net, x = factory(), torch.zeros(1, 4)
        >>> result = hp.prune(net, x, [(x, torch.zeros(1).long())], budget=hp.Budget(params=0.5), method="magnitude")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = hp.load(hp.save(result.model, result.plan, folder), factory)
        >>> bool((again(x) == result.model(x)).all())
        True
    """
    folder = Path(folder)
    plan = load_plan(folder)
    with torch.inference_mode(False):
        if factory is None:
            factory = factory_of(folder, _read_header(folder / WEIGHTS).get("attn_implementation"))
        dense = _built(factory)
        materialise(dense, plan.inputs.example)
        model = replay(dense, plan)
        header, state = _read_tensors(folder / WEIGHTS)
        _fill(model, _by_own_names(model, state))
        _check_hashes(folder, header, state)
        _cast_unsaved(model, json.loads(header.get(DTYPES, "{}")))
        return model.to(device).eval()


def _built(factory: Callable[[], nn.Module]) -> nn.Module:
    """Return the dense model that a factory builds.

    Raises:
        ArgumentError: It is no function, or returns no model.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ArgumentError(
            f"`factory` must be a function that builds the dense model, got {type(factory).__name__}. "
            "Write hp.load(folder, lambda: model)."
        )
    model = factory()
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"`factory` must return the dense model, an nn.Module, got {type(model).__name__}. "
            "Let the function return the model that it builds."
        )
    return model


def check_shapes(model: nn.Module, plan: Change) -> None:
    """Raise unless a model has the shapes that a plan gives, on all axes that the plan has slices of.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    for name, planned, shape in misshapen(model, steps_of(plan)[-1]):
        raise CheckpointError(
            f"`plan` must give the shapes of `model`, but '{name}' must be {planned}, got {shape}. Pass the plan "
            "between the dense model and this one: plan.then(next_plan) after several plans in a row."
        )


def load_plan(folder: str | Path) -> Change:
    """Read the plan of a saved model, or whatever else led to it.

    Raises:
        CheckpointError: The file is missing or truncated.
    """
    path = Path(folder) / PLAN
    if not exists(path):
        raise CheckpointError(f"folder '{folder}' must hold a {PLAN}, got none. Pass the folder that hp.save wrote.")
    try:
        return change_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' must be a plan written by `hessprune.save`, got: {error}.") from error


def _unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state by first names: safetensors stores a shared tensor once."""
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().contiguous()
    return state


def _unsaved_numbers(model: nn.Module) -> dict[str, Tensor]:
    """Return floating-point buffers that a state does not hold, such as the frequencies of rotary positions."""
    saved = model.state_dict(keep_vars=True).keys()
    return {n: b for n, b in model.named_buffers() if b.is_floating_point() and n not in saved}


def _cast_unsaved(model: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Round the buffers that a state does not hold as `model.to(dtype)` rounded those of the saved model."""
    known = {str(dtype): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}
    held = _unsaved_numbers(model)
    replace_tensors(model, {n: held[n].to(known[dtype]) for n, dtype in dtypes.items() if n in held and dtype in known})


def _by_own_names(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the first names of the model; `save_pretrained` may have written others."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}
    if not state.keys() <= names.keys():
        names |= {saved: names[own] for saved, own in saved_names(model).items()}
    return {names.get(name, name): value for name, value in state.items()}


def _read_header(path: Path) -> dict[str, str]:
    """Return what the header of the weights holds."""
    with _opened(path) as file:
        return file.metadata() or {}


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return what the header holds, and the tensors, each at an address of its own.

    The tensors of a file lie at odd addresses, where kernels sum in another order.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
        return file.metadata() or {}, tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors.

    Raises:
        CheckpointError: The file is missing, truncated or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"'{path}' must be a complete safetensors file, got: {error}. It is missing or truncated: "
            f"save the model again."
        ) from error


def _check_hashes(folder: Path, hashes: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    """Raise unless weights and plan are those that were saved together; files of earlier versions hold no hashes."""
    if not {"plan_sha256", "tensors_sha256"} & hashes.keys():
        return
    if hashes.get("tensors_sha256") != tensors_sha256(state):
        _raise_changed(folder / WEIGHTS)
    if hashes.get("plan_sha256") != file_sha256(folder / PLAN):
        _raise_changed(folder / PLAN)


def _raise_changed(path: Path) -> NoReturn:
    raise CheckpointError(
        f"'{path}' must be as `hessprune.save` wrote it beside the other file, got one with another hash. It was "
        "changed, or is of another model: save the model again."
    )


def _fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load strictly: every tensor must be there with the right shape; dtypes are those of the file."""
    expected = _unique_state(model)
    problems = [f"'{name}' is missing" for name in expected.keys() - state.keys()]
    problems += [f"'{name}' is not expected" for name in state.keys() - expected.keys()]
    for name in expected.keys() & state.keys():
        if expected[name].shape != state[name].shape:
            problems.append(f"'{name}' must be {tuple(expected[name].shape)}, got {tuple(state[name].shape)}")
    if problems:
        raise CheckpointError(
            f"the checkpoint must fit the factory's model: {'; '.join(sorted(problems)[:5])} ({len(problems)} in all). "
            f"Use the factory that built the dense model."
        )
    # Tensors that lie anywhere in a mapped file take other kernels, which sum in another order: copy them.
    replace_tensors(model, {name: value.clone() for name, value in state.items()})
