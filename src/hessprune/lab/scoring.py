"""Measure the saliencies that a recipe asks for, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from hessprune.foundation.files import writable_folder
from hessprune.foundation.processes import rank
from hessprune.foundation.state import torch_threads
from hessprune.lab.context import open_run
from hessprune.lab.memory import StageMemory
from hessprune.lab.pruned import groups_of, task_of
from hessprune.lab.report.saliencies import GroupSaliencies, Saliencies
from hessprune.lab.settings import RunSettings
from hessprune.lab.stages import dense_model
from hessprune.lab.together import process_group
from hessprune.methods.text import as_method
from hessprune.methods.values import Saliency
from hessprune.pruning.prune import score


def measure_saliency(
    settings: RunSettings,
    out: Path | str,
    *,
    method: str | None = None,
    ignore: Sequence[str] = (),
    data_root: Path | str = ".",
) -> Saliencies:
    """Measure how salient the units of a recipe's model are; a run or comparison in the same folder reads them again.

    Args:
        settings: Data, model and weights, method and estimator.
        out: Receives `saliency.json` and the finished `stages/`.
        method: In place of the recipe's, such as `"hap(estimator=rademacher)"`.
        ignore: Name patterns of layers whose outputs keep their width.
        data_root: What relative paths of the settings refer to.

    Returns:
        The saliencies of every group.

    Raises:
        ArgumentError: The method is unknown, or `ignore` matches nothing.
        DataError: The data are missing, or do not fit the model.
        UnsupportedModelError: The model cannot be captured, or nothing in it can be pruned.
    """
    out = writable_folder(out)
    name = settings.prune.method if method is None else str(as_method(method))
    with torch_threads(settings.threads), process_group():
        run = open_run(settings, out, Path(data_root))
        dense = dense_model(run)
        groups = groups_of(run, dense.model, ignore)
        task = task_of(run, dense, groups, name, settings.prune.budget, StageMemory(run, dense, groups, name))
        values = task.memory.saliency(task.scoring_settings(), lambda: score(task, dense.model, groups))
        number, noun = len(run.data.calibration), run.data.noun
        result = Saliencies(
            model=settings.model.name,
            method=name,
            groups=tuple(_group(values, group.name) for group in groups),
            provenance=values.provenance,
            data_fingerprint=run.data.fingerprint,
            notes=(
                f"Estimated increase of the loss if the unit goes, on {number:,} training {noun}s.",
                "Rankings also divide by the cost that a unit frees: `hessprune inspect` shows it.",
            ),
        )
        if rank() == 0:
            result.save(out / "saliency.json")
    return result


def _group(values: Saliency, name: str) -> GroupSaliencies:
    error = (values.standard_error or {}).get(name)
    return GroupSaliencies(
        group=name,
        values=tuple(values[name].tolist()),
        standard_error=None if error is None else tuple(error.tolist()),
    )
