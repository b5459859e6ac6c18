"""From the pipeline's values to the report's: widths, saliencies, certainty."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from hessprune.foundation.files import read_json
from hessprune.foundation.formatting import shortened
from hessprune.lab.context import Model, Run
from hessprune.lab.environment import environment, versions
from hessprune.lab.layer_table import layer_table, reasons_of
from hessprune.lab.layer_times import with_times
from hessprune.lab.models.zoos import ZooName
from hessprune.lab.pruned import Pruned
from hessprune.lab.report.run_report import (
    CurvePoint,
    EpochPoint,
    Estimate,
    GroupSaliency,
    LayerWidth,
    ModelResult,
    RunReport,
)
from hessprune.lab.settings import as_json
from hessprune.lab.stage_names import spoken_stage
from hessprune.methods.values import Saliency
from hessprune.planning.plan import Plan
from hessprune.structure.groups import Group, Groups, producers

_TRAINED = {"dense": "pretrain", "finetuned": "finetune", "int8": "quantize"}
_PERCENTILES = {"ms": "median", "p10_ms": "p10", "p90_ms": "p90"}


def assemble(
    run: Run,
    pruned: Pruned,
    models: Mapping[str, Model],
    *,
    groups: Groups,
    measured: Mapping[str, Mapping[str, Any]],
    latency: Mapping[str, Mapping[str, Any]],
    layer_ms: Mapping[str, tuple[float, float]],
    curve: Sequence[Mapping[str, Any]],
) -> RunReport:
    """Gather the results of all stages.

    Args:
        run: Settings and data.
        pruned: The recipe's own method.
        models: The models of the report, `dense` first.
        groups: Of the dense model, with what is frozen.
        measured: Accuracy and cost, of these models and of the baselines.
        latency: Timings, of these models and of the last ones of the baselines.
        layer_ms: Milliseconds of each layer, before and after.
        curve: Points of accuracy against cost.
    """
    results = {name: _result(values, latency.get(name)) for name, values in measured.items()}
    settings, dense = run.settings, models["dense"].model
    widths = layer_widths(pruned.plan, list(dense.state_dict()))
    ranking = settings.prune.ranking
    reasons = reasons_of(dense, run.example, groups, pruned.plan, pruned.saliency, ranking=ranking, widths=widths)
    return RunReport(
        title=settings.report.title or settings.model.name,
        models={name: results[name] for name in models},
        baselines={name: result for name, result in results.items() if name not in models},
        validation={name: _validated(values) for name, values in measured.items()},
        curve=tuple(CurvePoint(**point) for point in curve),
        layers=widths,
        table=with_times(
            layer_table(dense, models["finetuned"].model, run.example, widths=widths, reasons=reasons), layer_ms
        ),
        seconds=_spoken_seconds(run),
        date=datetime.now(tz=UTC).date().isoformat(),
        loading=_loading(run),
        estimate=estimate_of(pruned.saliency),
        saliency=group_saliencies(pruned.plan, pruned.saliency),
        history={_TRAINED[name]: epoch_points(model.history) for name, model in models.items() if model.history},
        plan=_plan_summary(pruned.plan),
        settings=settings.to_json(),
        seeds=_seeds(run),
        versions=versions(),
        environment=environment() | _latency_setting(latency),
        data=run.data.facts(),
        data_fingerprint=run.data.fingerprint,
        notes=(*_notes(run, latency), *_busy_note(latency), *_fp32_notes(models)),
    )


def _spoken_seconds(run: Run) -> dict[str, float]:
    """Return what the stages took, by the words that the terminal has for them."""
    found: dict[str, float] = {}
    for name, seconds in run.store.seconds.items():
        words = spoken_stage(name)
        found[words] = round(found.get(words, 0.0) + seconds, 1)
    return found


def _loading(run: Run) -> str:
    """Return the lines of Python that read the model back, from within the folder of the report."""
    name, data = run.settings.model.name, run.data
    zoo = ZooName.read(name)
    if zoo is not None and zoo.has_weights:
        return 'import hessprune as hp\nmodel = hp.load("model")'
    call = f'build_model("{name}", num_classes={data.num_classes}, in_channels={data.in_channels})'
    lines = ["import hessprune as hp", "from hessprune.lab.models import build_model"]
    return "\n".join([*lines, f'model = hp.load("model", lambda: {call})'])


def layer_widths(plan: Plan, order: Sequence[str]) -> tuple[LayerWidth, ...]:
    """Return dense, kept and implanted output channels of every layer that produces units.

    Args:
        plan: The pruned.
        order: Parameter names in the model's order.
    """
    kept = plan.kept
    widths: dict[str, LayerWidth] = {}
    for group in plan.groups:
        for piece in producers(group):
            width = len(piece.index[0])
            layer = piece.param.removesuffix(".weight")
            own, small = len(kept[group.name]), len(plan.implanted.get(group.name, ()))
            if layer not in plan.stand_ins:  # it has no kernel to shrink: all of its filters are full ones
                own, small = own + small, 0
            dense, stays, small = width * group.num_units, width * own, width * small
            before = widths.get(piece.param)
            if before is not None:  # a layer whose output is split among groups
                dense, stays, small = dense + before.dense, stays + before.kept, small + before.implanted
            widths[piece.param] = LayerWidth(name=layer, group=group.name, dense=dense, kept=stays, implanted=small)
    return tuple(widths[name] for name in order if name in widths)


def group_saliencies(plan: Plan, saliency: Saliency) -> tuple[GroupSaliency, ...]:
    """Return the saliency of every unit, to six digits, and whether it stays."""
    return tuple(
        GroupSaliency(
            group=group.name,
            values=tuple(float(f"{value:.6g}") for value in saliency[group.name].tolist()),
            kept=_flags(group, plan.removed[group.name], inside=False),
            implanted=_flags(group, plan.implanted.get(group.name, ())) if group.name in plan.implanted else (),
        )
        for group in plan.groups
    )


def _flags(group: Group, units: Sequence[int], *, inside: bool = True) -> tuple[bool, ...]:
    chosen = set(units)
    return tuple((unit in chosen) is inside for unit in range(group.num_units))


def estimate_of(saliency: Saliency) -> Estimate:
    """Say how the saliencies were obtained, and how sure they are."""
    facts = saliency.provenance
    return Estimate(
        method=facts["method"],
        estimator=facts.get("estimator", ""),
        kind=facts.get("kind", ""),
        relative_error=_relative_error(saliency),
        num_samples=facts.get("num_samples", 0),
        num_backwards=facts.get("num_backwards", 0),
    )


def _relative_error(saliency: Saliency) -> float | None:
    """Median over units of standard error / saliency; 0 for closed forms; None where nothing is estimated."""
    if saliency.standard_error is not None:
        errors = torch.cat([saliency.standard_error[name] / value for name, value in saliency.items()])
        errors = errors[torch.isfinite(errors)]
        return float(errors.median()) if len(errors) else None
    return 0.0 if saliency.provenance.get("estimator") == "exact" else None


def epoch_points(history: Sequence[Mapping[str, Any]]) -> tuple[EpochPoint, ...]:
    """Keep of a training history what is drawn."""
    names = ("epoch", "train_loss", "validation_loss", "validation_accuracy")
    return tuple(
        EpochPoint(
            **{name: record[name] for name in names},
            validation_perplexity=record.get("validation_metric") if record.get("lower_is_better") else None,
        )
        for record in history
    )


def _validated(values: Mapping[str, Any]) -> float:
    """Return the perplexity, or the accuracy, on validation samples."""
    return values.get("validation_perplexity", values["validation_accuracy"])


def _result(values: Mapping[str, Any], latency: Mapping[str, Any] | None) -> ModelResult:
    timing = {}
    if latency:
        timing = {f"latency_{key}": latency[f"{name}_ms"] for key, name in _PERCENTILES.items()}
    return ModelResult(**{key: value for key, value in values.items() if not key.startswith("validation")}, **timing)


def _plan_summary(plan: Plan) -> dict[str, Any]:
    """Return budget, costs, provenance and the kept units of every group."""
    return {
        "budget": as_json(plan.budget),
        "macs": [plan.cost_before.macs, plan.cost_after.macs],
        "params": [plan.cost_before.params, plan.cost_after.params],
        "provenance": dict(plan.provenance),
        "kept": {name: list(units) for name, units in plan.kept.items()},
        "implanted": {name: list(units) for name, units in plan.implanted.items()},
        "units": {group.name: group.num_units for group in plan.groups},
    }


def _seeds(run: Run) -> dict[str, int]:
    settings = run.settings
    seeds = {"run": settings.seed, "finetune": settings.finetune.seed + settings.seed}
    pretrain = settings.model.pretrain
    if settings.quantize is not None:
        seeds["quantize"] = settings.quantize.train.seed + settings.seed
    return seeds if pretrain is None else seeds | {"pretrain": pretrain.seed + settings.seed}


def _latency_setting(latency: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    first = next(iter(latency.values()))
    return {f"latency_{key}": first[key] for key in ("num_threads", "batch_size", "runtime", "device")}


def _notes(run: Run, latency: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Say what one has to know to read the numbers."""
    first = next(iter(latency.values()))
    count, noun = len(run.data.calibration), run.data.noun
    timed = _plural(first["batch_size"], noun)
    if run.data.has_lengths:
        length = run.data.input_shape[0]
        notes = [f"MACs: one {noun} of {length} tokens."]
        timed += f" of {length} tokens"
    else:
        notes = []
    notes += [
        f"{_judged(run)} and loss: {len(run.data.test)} test {noun}s, looked at once.",
        f"Latency: {timed} on {first['num_threads']} thread in {first['runtime']}, "
        f"median of {run.settings.report.latency_repeats} (10–90 %).",
    ]
    if run.settings.prune.compensate:
        notes.append(
            "After pruning, by any method, layers are refitted to the dense ones by least squares, and BatchNorm is "
            f"re-estimated on {count} training {noun}s, where that lowers the loss."
        )
    if run.settings.quantize is not None:
        notes.append(
            "INT8 is measured as the file runs in ONNX Runtime; its size is that of the file, weights and graph."
        )
    return tuple(notes)


def _judged(run: Run) -> str:
    return "Accuracy" if run.metric is None else "Perplexity of the next word"


def _busy_note(latency: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a warning where a model's times are far apart: ratios of medians are then noise."""
    if any(each["p90_ms"] > 2 * each["p10_ms"] for each in latency.values()):
        yield "Other work ran during the timing: some calls took over twice as long as others of the same model."


def _fp32_notes(models: Mapping[str, Model]) -> Iterator[str]:
    """Name the layers of the INT8 model that are none, and why."""
    if "int8" in models:
        left = read_json(models["int8"].stage.file("quantize.json"))["fp32_layers"]
        alike = {reason: [name for name in left if left[name] == reason] for reason in left.values()}
        named = "; ".join(f"{shortened(names)} ({reason})" for reason, names in alike.items())
        yield f"Layers of it left in FP32: {named or 'none'}."


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
