"""Measure the saliencies that a recipe asks for, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hessprune.foundation.files import writable_folder
from hessprune.foundation.state import torch_threads
from hessprune.lab.comparing import parse_method
from hessprune.lab.context import open_run
from hessprune.lab.decisions import score
from hessprune.lab.report.saliencies import GroupSaliencies, Saliencies
from hessprune.lab.settings import RunSettings
from hessprune.lab.stages import dense_model
from hessprune.lab.store import load_saliency
from hessprune.methods.values import Saliency
from hessprune.structure.find import find_groups


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
        method: In place of the recipe's, with options behind colons as in `CompareSettings`.
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
    changes = {} if method is None else parse_method(method)
    settings = replace(settings, prune=replace(settings.prune, **changes))
    with torch_threads(settings.threads):
        run = open_run(settings, out, Path(data_root))
        model = dense_model(run).model
        groups = find_groups(model, run.example, ignore)
        values = load_saliency(score(run, model, groups, settings.prune.method).folder)
    result = Saliencies(
        model=settings.model.name,
        method=settings.prune.method,
        groups=tuple(_group(values, group.name) for group in groups),
        provenance=values.provenance,
        data_fingerprint=run.data.fingerprint,
        notes=(
            f"Estimated increase of the loss if the unit goes, on {len(run.data.calibration):,} training images.",
            "Rankings also divide by the cost that a unit frees: `hessprune inspect` shows it.",
        ),
    )
    result.save(out / "saliency.json")
    return result


def _group(values: Saliency, name: str) -> GroupSaliencies:
    error = (values.standard_error or {}).get(name)
    return GroupSaliencies(
        group=name,
        values=tuple(values[name].tolist()),
        standard_error=None if error is None else tuple(error.tolist()),
    )
