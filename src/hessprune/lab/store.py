"""Stages that run once: a folder, a key and a marker each, so that a killed run continues at its last stage."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hessprune.errors import ArgumentError, CheckpointError, DataError, OutputError
from hessprune.foundation.checks import check_choice
from hessprune.foundation.files import read_json, replacing, sha256, writable_folder, write_json
from hessprune.foundation.formatting import shown
from hessprune.foundation.hashing import file_sha256
from hessprune.foundation.progress import progress_bar
from hessprune.lab.together import one_writes, told
from hessprune.methods.tensors import saliency_from, saliency_tensors
from hessprune.methods.values import Saliency

VERSIONS: Mapping[str, int] = {
    "dense": 1,
    "saliency": 2,
    "latency": 1,
    "plan": 1,
    "step": 1,
    "pruned": 1,
    "finetuned": 1,
    "measured": 1,
    "cell": 1,
    "curve": 2,
    "onnx": 1,
    "int8": 1,
    "bottlenecks": 1,
    "reallocated": 1,
    "widened": 1,
}
"""For each kind of stage a number to raise by hand when its results change: kept ones of a lower number are redone."""
SHARED = ("saliency", "plan", "step", "pruned", "curve", "cell")
"""Kinds of stages that several processes make together; one process makes the others."""
_WEIGHTS = "model.safetensors"
_MARKER = "stage.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A finished stage: its files lie in `folder`, and `key` stands for their content."""

    folder: Path
    key: str
    reused: bool

    def file(self, name: str) -> Path:
        """Return the path of one of the stage's files."""
        return self.folder / name


class StageStore:
    """The stages of one run, below one folder.

    The key of a stage is a hash of its name, its inputs (settings, and the keys of earlier stages), the number of its
    kind in `VERSIONS`, and the version of torch. A stage that finished under the same key is reused; one that was
    interrupted continues with the files that it left; under another key it starts afresh. A stage of another key is
    replaced, unless stages are kept `by_content`: then they stand side by side. The marker of a finished stage holds
    a hash of each file: a stage that lost a file, or has a changed one, is made again.

    Example:
        >>> import tempfile
        >>> from hessprune.lab.store import StageStore
        >>> store = StageStore(tempfile.mkdtemp())
        >>> [store.run("2-saliency-hap", lambda folder: None, {"seed": 0}).reused for _ in range(2)]
        [False, True]
    """

    def __init__(self, root: Path | str, *, by_content: bool = False) -> None:
        self.root, self.by_content = writable_folder(root), by_content
        self._counted: set[Path] = set()
        self._depth = 0
        self.seconds: dict[str, float] = {}
        """Seconds that each finished stage took when it was made, by name; draws of one stage are summed."""

    def run(self, name: str, make: Callable[[Path], object], *inputs: Any, by_content: bool = False) -> Stage:
        """Return the finished stage `name`, calling `make(folder)` unless it finished before with equal `inputs`.

        Args:
            name: The folder's name: a number, a kind of `VERSIONS`, and a label: `"2-saliency-hap"`.
            make: Writes the results into the folder it is given; may find files there that an interrupted call left.
            inputs: JSON values and earlier `Stage`s that decide the result.
            by_content: Keep results under other inputs too; always so if the store was opened that way.

        Returns:
            The stage. Results are always read back from its files, so that a resumed run sees the same values.

        Raises:
            ArgumentError: `name` is no plain folder name with a known kind.
            OutputError: The folder cannot be written.
        """
        _check_name(name)
        key = _key(name, inputs)
        folder = self.root / (f"{name}-{key[:16]}" if by_content or self.by_content else name)
        if told(lambda: self._is_finished(folder, key)):
            self._count(folder, name, _read_marker(folder))
            return Stage(folder=folder, key=key, reused=True)
        start = time.monotonic()
        self._depth += 1
        try:
            with progress_bar(name), one_writes(folder, shared=name.split("-")[1] in SHARED) as own:
                if own is not None:
                    make(own)
        finally:
            self._depth -= 1
        seconds = round(time.monotonic() - start, 3)
        told(lambda: _mark(folder, {"key": key, "done": True, "seconds": seconds}))
        self._count(folder, name, {"seconds": seconds})
        return Stage(folder=folder, key=key, reused=False)

    def _is_finished(self, folder: Path, key: str) -> bool:
        """Return whether a stage finished under this key; make its folder ready if not."""
        marker = _read_marker(folder)
        if marker.get("key") == key and marker.get("done") and _is_whole(folder, marker):
            return True
        if marker.get("key") != key or marker.get("done") or _holds_links(folder):
            _remove(folder)
            write_json(folder / _MARKER, {"key": key, "done": False})
        return False

    def _count(self, folder: Path, name: str, facts: Mapping[str, Any]) -> None:
        """Remember the time of a stage, once for each folder; one within another is in the time of that one."""
        if folder not in self._counted and not self._depth:
            self._counted.add(folder)
            self.seconds[name] = self.seconds.get(name, 0.0) + float(facts.get("seconds", 0.0))


def save_state(model: nn.Module, folder: Path) -> None:
    """Write a model's state dict."""
    with replacing(folder / _WEIGHTS) as path:
        # Copies, because shared tensors are refused.
        save_file({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}, path)


def load_state(model: nn.Module, folder: Path) -> nn.Module:
    """Put what `save_state` wrote into a model of the same shape; return it in evaluation mode.

    Raises:
        CheckpointError: The file is missing or damaged, or is of another model.
    """
    with _damage_named(folder):
        model.load_state_dict(load_file(folder / _WEIGHTS))
    return model.eval()


def save_saliency(values: Saliency, folder: Path) -> None:
    """Write the numbers as tensors, and how they came about as JSON."""
    tensors, facts = saliency_tensors(values)
    with replacing(folder / "saliency.safetensors") as path:
        save_file(tensors, path)
    write_json(folder / "saliency.json", facts)


def load_saliency(folder: Path) -> Saliency:
    """Read what `save_saliency` wrote.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    with _damage_named(folder):
        tensors, facts = load_file(folder / "saliency.safetensors"), read_json(folder / "saliency.json")
        return saliency_from(tensors, facts)


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Name the folder of a stage whose files cannot be read.

    Raises:
        CheckpointError: In place of what the readers raise.
    """
    try:
        yield
    except (SafetensorError, DataError, OSError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"stage '{folder}' must be whole, got {type(error).__name__}: {reason}. Delete that folder; the same "
            "command makes the stage again."
        ) from error


def _check_name(name: str) -> None:
    """Raise unless a stage's name is one folder name with a kind of `VERSIONS` in its second place."""
    if Path(name).name != name or "\0" in name:
        raise ArgumentError(f"`name` of a stage must be a plain folder name, got {shown(name)}. Write '1-dense'.")
    check_choice("kind of stage", name.partition("-")[2].partition("-")[0], VERSIONS)


def _mark(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Write the marker of a finished stage, with the hash of each file."""
    write_json(folder / _MARKER, {**facts, "files": _hashes(folder)})
    return True


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a stage but its marker, by relative path."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_sha256(path) for name, path in files.items() if name != _MARKER}


def _is_whole(folder: Path, marker: Mapping[str, Any]) -> bool:
    """Return whether all files that a stage left are as it left them; files that came later do not count."""
    left = marker.get("files")
    if not isinstance(left, dict):
        return False
    try:
        return left.items() <= _hashes(folder).items()
    except OSError:  # a file that cannot be read
        return False


def _holds_links(folder: Path) -> bool:
    """Return whether a folder is, or holds, a symbolic link: what is written there could land elsewhere."""
    return folder.is_symlink() or any(path.is_symlink() for path in folder.rglob("*"))


def _remove(folder: Path) -> None:
    """Remove the folder of a stage; a link goes, and what it points to stays.

    Raises:
        OutputError: The operating system refuses.
    """
    try:
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(
            f"folder '{folder}' must be removable, got {error.strerror or error}. Delete it by hand."
        ) from error


def _key(name: str, inputs: Sequence[Any]) -> str:
    version = VERSIONS[name.split("-")[1]]
    parts = [part.key if isinstance(part, Stage) else part for part in inputs]
    return sha256(json.dumps([version, torch.__version__, name, parts], sort_keys=True, allow_nan=False))


def _read_marker(folder: Path) -> dict[str, Any]:
    """Return the marker, or nothing where there is none that can be read: the stage then starts afresh."""
    try:
        marker = read_json(folder / _MARKER)
    except DataError:
        return {}
    return marker if isinstance(marker, dict) else {}
