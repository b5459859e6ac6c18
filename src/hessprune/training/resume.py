"""The folder of a run: where it stands, whole or not at all, and the best model so far.

`last.safetensors` holds the weights, the optimizer's state and, as JSON in its header, everything else; one file, so
that no kill can tear it apart. `best-<epoch>.safetensors` is a plain state dict, written before the file that
refers to it. The header holds a hash of all of that, so that a changed byte is noticed. No pickle.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hessprune.errors import CheckpointError
from hessprune.foundation.arguments import required_inputs
from hessprune.foundation.batches import read_pair
from hessprune.foundation.files import sha256, writable_folder, write_bytes
from hessprune.foundation.hashing import tensors_sha256, weights_sha256
from hessprune.foundation.identity import content_sha256, loss_identity, modules_sha256
from hessprune.foundation.state import seeded
from hessprune.foundation.trees import tensors_in
from hessprune.training.config import EpochRecord, FinetuneConfig
from hessprune.training.goal import Goal
from hessprune.training.learner import Learner
from hessprune.training.replay import num_steps, replayed


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run stands: `step` batches into `epoch`, with that epoch's sums, the closed epochs and the best state."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    num_samples: int = 0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def close_epoch(self, record: EpochRecord, state: Mapping[str, Tensor]) -> None:
        """Add a line to the history and go to the next epoch; a strictly better one makes `state` the best."""
        if not self.history or record.rank > self.history[self.best_epoch].rank:
            self.best_epoch, self.best = record.epoch, on_host(state)
        self.history.append(record)
        self.epoch, self.step = record.epoch + 1, 0
        self.loss_sum, self.num_samples, self.seconds = 0.0, 0, 0.0


class Vault:
    """Keeps a run in a folder; without one, keeps nothing.

    Args:
        folder: Created where missing.
        identify: Returns what must agree for a run to be continued (`identity_of`); called where there is a folder.
    """

    def __init__(self, folder: Path | str | None, identify: Callable[[], dict[str, Any]]) -> None:
        self.folder = writable_folder(folder) if folder is not None else None
        self._identify = identify
        self.identity = identify() if folder is not None else {}
        self.writes = True
        self._best_on_disk: int | None = None

    def save(self, learner: Learner, progress: Progress) -> None:
        """Write the best model if it is new, then the state that refers to it, then drop what neither needs."""
        if self.folder is None or not self.writes:
            return
        best = self._best(progress.best_epoch)
        if self._best_on_disk != progress.best_epoch:
            write_bytes(best, safetensors.torch.save(progress.best))
            self._best_on_disk = progress.best_epoch
        numbers = asdict(progress)
        del numbers["best"]
        header: dict[str, Any] = {"identity": self.identity, "progress": numbers, "scaler": learner.scaler.state_dict()}
        tensors = on_host(learner.state())
        header["sha256"] = _seal(header, tensors, progress.best)
        state = safetensors.torch.save(tensors, {"hessprune": json.dumps(header)})
        write_bytes(self.folder / "last.safetensors", state)
        # Older best models, and the halves of files that a kill interrupted.
        for path in {*self.folder.glob("best-*.safetensors"), *self.folder.glob(".*.tmp.safetensors")} - {best}:
            path.unlink(missing_ok=True)

    def load(self, learner: Learner) -> Progress | None:
        """Put the learner where the saved run stands; None where nothing is saved.

        Raises:
            CheckpointError: The files are truncated or changed, or belong to another run.
        """
        if self.folder is None or not (self.folder / "last.safetensors").exists():
            return None
        header, tensors = _read(self.folder / "last.safetensors")
        self._check_identity(header.get("identity", {}))
        numbers = header.get("progress", {})
        _, best = _read(self._best(numbers.get("best_epoch", 0)))
        if header.pop("sha256", None) != _seal(header, tensors, best):
            raise CheckpointError(_damage(self.folder / "last.safetensors", "its hash is another one"))
        self._best_on_disk = numbers["best_epoch"]
        learner.load(tensors, header["scaler"])
        history = [EpochRecord(**record) for record in numbers.pop("history")]
        return Progress(**numbers, history=history, best=best)

    def where(self, progress: Progress) -> str:
        """Say in a sentence where the best model is kept, or nothing."""
        return "" if self.folder is None else f" The best model so far is kept in '{self._best(progress.best_epoch)}'."

    def _best(self, epoch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"best-{epoch}.safetensors"

    def _check_identity(self, saved: Mapping[str, Any]) -> None:
        names = [name for name, value in self.identity.items() if saved.get(name) != value]
        again = self._identify() if names else self.identity
        # What is another one at each look, such as data in an order that numpy draws, cannot be compared.
        differing = [
            name if str(value).startswith("sha256") else f"{name} {_short(saved.get(name))} there, {_short(value)} now"
            for name, value in self.identity.items()
            if name in names and again[name] == value
        ]
        if differing:
            raise CheckpointError(
                f"`checkpoint_dir` must hold a run of the same settings, model and data, got '{self.folder}', which "
                f"differs in: {'; '.join(differing)}. Delete that folder to start anew, or choose another."
            )


def identity_of(
    config: FinetuneConfig, model: nn.Module, goal: Goal, train: Iterable[Any], validation: Iterable[Any]
) -> dict[str, Any]:
    """Return what two runs must share to be the same run, as JSON: settings, goal, models and data.

    Of the data, the first batches count. Inputs for training may be augmented by generators that are not torch's, so
    that targets stand for them where there are any.
    """
    settings = asdict(config)
    del settings["checkpoint_every_steps"]  # changes no number
    metric = loss_identity(goal.metric) if callable(goal.metric) else goal.metric
    required = required_inputs(model)
    first = read_pair(next(replayed(train, seed=config.seed, epoch=0)), model, required, "train")
    with seeded(config.seed):
        held_out = read_pair(next(iter(validation)), model, required, "validation")
    return (
        settings
        | {"loss": loss_identity(goal.loss_fn), "metric": metric}
        | {"initial weights": f"sha256:{weights_sha256(model)}", "modules": f"sha256:{modules_sha256(model)}"}
        | _of_teacher(goal.teacher)
        | {
            "first batch of train": [_shapes(first), _content(first[0] if first[1] is None else first[1])],
            "first batch of validation": [_shapes(held_out), _content(held_out)],
            "batches in train": num_steps(train),
            "batches in validation": num_steps(validation),
        }
    )


def _of_teacher(teacher: nn.Module | None) -> dict[str, str | None]:
    return {
        "teacher's weights": None if teacher is None else f"sha256:{weights_sha256(teacher)}",
        "teacher's modules": None if teacher is None else f"sha256:{modules_sha256(teacher)}",
    }


def _content(value: Any) -> str:
    return content_sha256(value)[:12]


def _short(value: Any) -> str:
    """Return a value for a message; of a batch its shapes and the hash."""
    return " ".join(str(part) for part in value) if isinstance(value, list) else repr(value)


def on_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a state dict to the CPU, each tensor with memory of its own."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def _shapes(pair: Any) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors_in(pair)]


def _seal(header: Mapping[str, Any], tensors: Mapping[str, Tensor], best: Mapping[str, Tensor]) -> str:
    """Return the hash of everything that a run leaves in its folder."""
    return sha256(json.dumps([header, tensors_sha256(tensors), tensors_sha256(best)], sort_keys=True))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON header and the tensors of one file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("hessprune", "{}"))
            return dict(header), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(_damage(path, " ".join(str(error).split())[:120])) from error


def _damage(path: Path, reason: str) -> str:
    return (
        f"'{path}' must be a whole checkpoint, got one that cannot be read ({reason}). "
        f"Delete the folder '{path.parent}' to start anew."
    )
