"""A whole run: from data to report, as a recipe says."""

from importlib.util import find_spec
from pathlib import Path

from hessprune.errors import MissingDependencyError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.files import writable_folder
from hessprune.foundation.processes import rank
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import torch_threads
from hessprune.lab import integers, stages
from hessprune.lab.assembly import assemble
from hessprune.lab.context import open_run
from hessprune.lab.layer_times import layer_latencies
from hessprune.lab.pruned import check_pruning, groups_of, prune_by
from hessprune.lab.report.html import write_html
from hessprune.lab.report.run_report import RunReport
from hessprune.lab.settings import RunSettings
from hessprune.lab.together import process_group
from hessprune.quantize.backend import find_backend
from hessprune.surgery import checkpoint


def run(settings: RunSettings, out: Path | str, *, data_root: Path | str = ".") -> RunReport:
    """Run a recipe from data to report; called again after a kill, it continues from its last finished stage or step.

    Args:
        settings: From `load_recipe`, or made in Python.
        out: Receives `report.html`, `report.json`, `model/`, `model.onnx`, `int8.onnx` and the finished
            `stages/`.
        data_root: The folder that relative paths of the settings refer to.

    Returns:
        The report; `report.json` holds the same.
    """
    out = writable_folder(out)
    check_extras(settings)
    with torch_threads(settings.threads), process_group():
        report = _run(settings, out, Path(data_root))
        if rank() == 0:
            report.save(out / "report.json")
            write_html(report, out / "report.html")
    return report


def _run(settings: RunSettings, out: Path, data_root: Path) -> RunReport:
    """Make all stages, in order."""
    job = open_run(settings, out, data_root)
    dense = stages.dense_model(job, lambda model: check_pruning(job, model, groups_of(job, model)))
    groups = groups_of(job, dense.model, compare=True)

    own = settings.prune.method
    pruned = {method: prune_by(job, dense, groups, method) for method in (own, *job.baselines)}
    trained = pruned if settings.report.baselines == "finetuned" else (own,)
    tuned = {method: stages.tune(job, dense, pruned[method]) for method in trained}

    models = {"dense": dense, "pruned": pruned[own].model, "finetuned": tuned[own]}
    others = {f"{method}-pruned": pruned[method].model for method in job.baselines}
    others |= {f"{method}-finetuned": tuned[method] for method in job.baselines if method in tuned}
    measured = {name: stages.measure(job, name, model) for name, model in (models | others).items()}
    last = (f"{method}-{'finetuned' if method in tuned else 'pruned'}" for method in job.baselines)
    rivals = {name: others[name] for name in last}
    files: dict[str, Path] = {}
    if settings.quantize is not None:
        models["int8"] = int8 = integers.quantize(job, tuned[own], settings.quantize)
        files = integers.onnx_files(job, dense, tuned[own], int8)
        files |= {name: stages.export(job, name, model) for name, model in rivals.items()}
        measured["int8"] = integers.measure_file(job, int8, measured["finetuned"])
    report = assemble(
        job,
        pruned[own],
        models,
        groups=groups,
        measured=measured,
        latency=stages.latencies(job, models | rivals, files),
        layer_ms=layer_latencies(job, dense, tuned[own]),
        curve=[point for item in pruned.values() for point in stages.curve(job, dense, groups, item.method)],
    )

    exported = stages.export(job, "finetuned", tuned[own]) if settings.export.onnx else None
    if rank() == 0:
        checkpoint.save(tuned[own].model, pruned[own].plan, out / "model")
        if exported is not None:
            stages.deliver(exported, out / "model.onnx")
        if "int8" in files:
            stages.deliver(files["int8"], out / "int8.onnx")
    return report


def check_extras(settings: RunSettings) -> None:
    """Fail before the work, not after it, where a package for the last stages is missing.

    Raises:
        MissingDependencyError: One command names all that is missing.
    """
    exports = settings.export.onnx or settings.quantize is not None
    wanted = {"matplotlib": "report"}
    wanted |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export") if exports else {}
    wanted |= {"torchao": "quantize"} if settings.quantize is not None else {}
    missing = {package: extra for package, extra in wanted.items() if find_spec(package) is None}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise MissingDependencyError(
            f"{', '.join(f'`{package}`' for package in missing)} must be installed for this recipe. "
            f"Run: pip install 'hessprune[{extras}]'"
        )
    optional_import("matplotlib", "report")
    if settings.export.onnx or settings.quantize is not None:
        optional_import("onnxruntime", "export")
    if settings.quantize is not None:
        find_backend(settings.quantize.target).check_installed()
        with quiet():  # its import warns about kernels for other machines
            optional_import("torchao.quantization.pt2e", "quantize")
