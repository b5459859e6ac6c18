"""Stages that run once: a folder, a key and a marker each, so that a killed run continues where it stopped."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hessprune._files import read_json, sha256, writable_folder, write_json
from hessprune._progress import progress_bar
from hessprune.errors import DataError

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

    The key of a stage is a hash of everything that its result depends on: its settings and the keys of the stages
    before it. A stage that finished under the same key is reused; one that was interrupted under the same key
    continues with the files it left; under another key it starts afresh.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = writable_folder(root)

    def run(self, name: str, make: Callable[[Path], object], *inputs: Any) -> Stage:
        """Return the finished stage `name`, calling `make(folder)` unless it finished before with equal `inputs`.

        Args:
            name: The folder's name.
            make: Writes the results into the folder it is given; may find there what an interrupted call left.
            inputs: JSON-ready values and earlier `Stage`s that decide the result.

        Returns:
            The stage. Results are always read back from its files, so that a resumed run sees the same values.
        """
        key = _key(name, inputs)
        folder = self.root / name
        marker = _read_marker(folder)
        if marker.get("key") == key and marker.get("done"):
            return Stage(folder=folder, key=key, reused=True)
        if marker.get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / _MARKER, {"key": key, "done": False})
        start = time.monotonic()
        with progress_bar(name):
            make(folder)
        write_json(folder / _MARKER, {"key": key, "done": True, "seconds": round(time.monotonic() - start, 3)})
        return Stage(folder=folder, key=key, reused=False)


def _key(name: str, inputs: tuple[Any, ...]) -> str:
    parts = [part.key if isinstance(part, Stage) else part for part in inputs]
    return sha256(json.dumps([metadata.version("hessprune"), name, parts], sort_keys=True, allow_nan=False))


def _read_marker(folder: Path) -> dict[str, Any]:
    """Return the marker, or nothing where there is none that can be read: the stage then starts afresh."""
    try:
        marker = read_json(folder / _MARKER)
    except DataError:
        return {}
    return marker if isinstance(marker, dict) else {}
