"""Saliencies kept in a folder, so that a killed `hp.prune` does not measure them again."""

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


class KeptSaliencies(NoMemory):
    """Reads the saliencies of the same model, data, loss and method; makes and writes others."""

    def __init__(self, folder: Path, origin: Origin, batches: Rereadable) -> None:
        self._path, self._origin, self._batches = writable_folder(folder) / FILE, origin, batches

    def saliency(self, settings: Settings, make: Callable[[], Saliency]) -> Saliency:
        """Return the saliencies that were kept, or make and keep them."""
        method = settings["method"]
        kept = self._kept()
        if kept is not None and kept.origin == self._origin and method in kept.saliencies:
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
        try:
            return Statistics.load(self._path)
        except CheckpointError:  # there is none, or it is damaged
            return None


def with_folder(task: Task) -> Task:
    """Return a task that keeps its saliencies in its folder, if it has one and does not have them from elsewhere."""
    if task.folder is None or type(task.memory) is not NoMemory:
        return task
    return replace(task, memory=KeptSaliencies(task.folder, origin_of(task), task.batches))
