"""Saliencies kept in a folder, so that a killed `hp.prune` does not measure them again."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hessprune.errors import CheckpointError
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.files import writable_folder
from hessprune.methods.values import Saliency
from hessprune.pruning.measuring import origin_of
from hessprune.pruning.memory import NoMemory, Settings
from hessprune.pruning.statistics import Origin, Statistics
from hessprune.pruning.task import Task

FILE = "saliencies.safetensors"
_log = logging.getLogger(__name__)


class KeptSaliencies(NoMemory):
    """Reads the saliencies of the same model, data, loss and method, told by `Origin`; makes and writes others."""

    def __init__(self, folder: Path, origin: Origin, batches: Rereadable) -> None:
        self._path, self._origin, self._batches = writable_folder(folder) / FILE, origin, batches

    def saliency(self, settings: Settings, make: Callable[[], Saliency]) -> Saliency:
        """Return the saliencies that were kept, or make and keep them."""
        method = settings["method"]
        kept = self._kept()
        if kept is not None and method in kept.saliencies:
            return kept.saliencies[method]
        values = make()
        statistics = Statistics(
            saliencies={method: values},
            moments=None,
            origin=self._origin,
            num_samples=self._batches.num_samples,
            seconds=0.0,
        )
        statistics.save(self._path)
        return values

    def _kept(self) -> Statistics | None:
        """Return what was kept, unless it is damaged or of something else; a warning in the log says so."""
        if not self._path.exists():
            return None
        try:
            kept = Statistics.load(self._path)
        except CheckpointError:
            _log.warning("%s is damaged or no file of saliencies: they are measured anew", self._path)
            return None
        difference = kept.origin.difference(self._origin)
        if difference is not None:
            _log.warning("the saliencies in %s differ in their %s: they are measured anew", self._path, difference[0])
        return kept if difference is None else None


def with_folder(task: Task) -> Task:
    """Return a task that keeps its saliencies in its folder, if it has one and does not have them from elsewhere."""
    if task.folder is None or type(task.memory) is not NoMemory:
        return task
    return replace(task, memory=KeptSaliencies(task.folder, origin_of(task), task.batches))
