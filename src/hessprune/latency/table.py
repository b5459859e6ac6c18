"""Measuring a latency table, and correcting it on the models that are planned with it."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import LatencyTable, unit_step
from hessprune.costs.layer_shapes import LayerShape, find_layers
from hessprune.costs.layer_times import LayerTimes, grid
from hessprune.costs.target import LatencyTarget
from hessprune.deploy.export import resized
from hessprune.errors import DataError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.files import read_json, sha256, write_json
from hessprune.foundation.modules import device_of
from hessprune.foundation.progress import progress_bar, track
from hessprune.foundation.trees import leading_size
from hessprune.latency.onnx_timer import OnnxTimer
from hessprune.latency.timers import Case, Timer, TorchTimer
from hessprune.planning.plan import Plan
from hessprune.planning.planner import plan_removing
from hessprune.structure.groups import Group
from hessprune.surgery.apply import apply_plan

PASSES = 2
"""How often all shapes are gone through; the faster pass counts, for a slow spell may last for a whole shape."""
TOLERANCE = 0.03
"""Relative error of a predicted share of the dense latency with which a plan is taken."""
ROUNDS = 4
"""Plans that are measured at most."""


def latency_table(
    model: nn.Module,
    groups: Sequence[Group],
    example_inputs: Any,
    target: LatencyTarget | None = None,
    *,
    cache_dir: Path | str | None = None,
    timer: Timer | None = None,
) -> LatencyTable:
    """Measure what predicts the latency of a model with any units removed, on this machine.

    Layers of one shape (kernel, stride, size of the input …) are timed once, on a grid of widths. The whole model and
    one of about half its width then tell what all the rest takes.

    Args:
        model: The dense model; it is not changed.
        groups: From `find_groups`.
        example_inputs: A tensor, tuple or dict.
        target: Runtime, threads and batch size.
        cache_dir: A folder that keeps the times of layers, by shape, runtime, version, threads and processor.
        timer: What measures; the runtime's own by default.

    Returns:
        The table, for `Budget(latency_ms=…, target=table)`.

    Raises:
        ArgumentError: The model cannot be exported to the runtime in question.
        MissingDependencyError: ONNX Runtime is asked for, and it or what exports to it is not installed.

    Example:
        >>> import torch, hessprune as hp
        >>> net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> x = torch.zeros(16, 64)
        >>> table = latency_table(net, hp.find_groups(net, x), x)
        >>> 0 < table.ms({"0": 128}) <= table.ms() == table.dense_ms
        True
    """
    target = target or LatencyTarget()
    example = resized(example_inputs, target.batch_size or leading_size(example_inputs))
    facts = target.facts(leading_size(example), device_of(model).type)
    with timing(model, example, target, timer) as watch:
        layers = find_layers(model, groups, example)
        shapes = list(dict.fromkeys(layer.shape for layer in layers.layers))
        dense_ms = statistics.median(times["dense"] for times in watch.models({"dense": model}))
        table = LatencyTable(
            groups=tuple(group.name for group in groups),
            units=tuple(group.num_units for group in groups),
            steps=tuple(unit_step(group, target.round_to) for group in groups),
            layers=layers,
            times=_timed(shapes, watch, target.round_to, facts, None if cache_dir is None else Path(cache_dir)),
            dense_ms=dense_ms,
            target=facts,
        )
        return _calibrated(table, model, groups, example, watch)


def settled(
    table: LatencyTable,
    model: nn.Module,
    example_inputs: Any,
    plan_with: Callable[[LatencyTable], Plan],
    *,
    timer: Timer | None = None,
) -> LatencyTable:
    """Return the table that predicts the plan made with it: plan, measure, correct, up to four times.

    Args:
        table: From `latency_table`.
        model: The dense model.
        example_inputs: As there.
        plan_with: Plans with a table.
        timer: As there.
    """
    target = LatencyTarget.of(table.target)
    example = resized(example_inputs, table.target["batch_size"])
    with timing(model, example, target, timer) as watch, progress_bar("measuring plans", ROUNDS) as bar:

        def look() -> tuple[dict[str, int], float, float]:
            plan = plan_with(table)
            counts, share = _counts(plan), measured_share(model, plan, watch)
            predicted = table.ms(counts) / table.dense_ms
            bar.advance(note=f"{share:.3f} of the dense latency, predicted {predicted:.3f}")
            return counts, share, predicted

        counts, share, predicted = look()
        for _ in range(ROUNDS - 1):
            if abs(predicted / share - 1) <= TOLERANCE:
                break
            table = table.corrected(counts, share)
            counts, share, predicted = look()
        return table.checked(counts, share)


def table_for(
    model: nn.Module,
    groups: Sequence[Group],
    example_inputs: Any,
    latency: LatencyTarget | LatencyTable | None,
    plan_with: Callable[[LatencyTable], Plan],
) -> LatencyTable:
    """Return a table to plan with: measured unless it is given, and corrected on what is planned with it."""
    target = LatencyTarget.of(latency.target) if isinstance(latency, LatencyTable) else latency or LatencyTarget()
    example = resized(example_inputs, target.batch_size or leading_size(example_inputs))
    with timing(model, example, target) as timer:
        known = latency if isinstance(latency, LatencyTable) else None
        table = known or latency_table(model, groups, example, target, timer=timer)
        return settled(table, model, example, plan_with, timer=timer)


def with_measured_latency(plan: Plan, model: nn.Module, example_inputs: Any, *, timer: Timer | None = None) -> Plan:
    """Return the plan with the latency of its model, measured unless its table was checked on this very plan."""
    facts = plan.provenance["latency"]
    if "measured_ms" in facts:
        return plan
    example = resized(example_inputs, facts["batch_size"])
    with timing(model, example, LatencyTarget.of(facts), timer) as watch:
        found = {"measured_ms": float(f"{measured_share(model, plan, watch) * facts['dense_ms']:.6g}")}
    return replace(plan, provenance={**plan.provenance, "latency": {**facts, **found}})


def measured_share(model: nn.Module, plan: Plan, watch: Timer) -> float:
    """Return the latency of what a plan leaves over the dense model's: the median ratio of calls in turns."""
    rounds = watch.models({"dense": model, "pruned": apply_plan(model, plan, check=False)})
    return statistics.median(times["pruned"] / times["dense"] for times in rounds)


@contextmanager
def timing(model: nn.Module, example_inputs: Any, target: LatencyTarget, timer: Timer | None = None) -> Iterator[Timer]:
    """Yield what measures for a target, or the `timer` given."""
    if timer is not None:
        yield timer
    elif target.runtime == "torch":
        yield TorchTimer(model, example_inputs, target)
    else:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            optional_import(package, "export")
        with tempfile.TemporaryDirectory() as folder:
            yield OnnxTimer(example_inputs, target, Path(folder))


def _timed(
    shapes: Sequence[LayerShape], watch: Timer, step: int, facts: Mapping[str, Any], cache: Path | None
) -> tuple[LayerTimes, ...]:
    """Return the times of all shapes, from the cache as far as it has them."""
    files = [_cache_file(cache, shape, step, facts) for shape in shapes]
    found = [None if file is None else _cached(file) for file in files]
    missing = [number for number, times in enumerate(found) if times is None]
    for number in track(missing * PASSES, "timing layers"):
        fresh, known = _on_grid(shapes[number], watch, step), found[number]
        found[number] = fresh if known is None else _faster(known, fresh)
    for number in missing:
        file, times = files[number], found[number]
        if file is not None and times is not None:
            write_json(file, times.to_json())
    return tuple(times for times in found if times is not None)


def _on_grid(shape: LayerShape, watch: Timer, step: int) -> LayerTimes:
    inputs, outputs = grid(shape, step)
    ms = watch.layers([Case(shape, i, o) for i in inputs for o in outputs])
    rows = (tuple(ms[start : start + len(outputs)]) for start in range(0, len(ms), len(outputs)))
    return LayerTimes(shape=shape, inputs=inputs, outputs=outputs, ms=tuple(rows))


def _faster(one: LayerTimes, other: LayerTimes) -> LayerTimes:
    """Return the shorter time at each point."""
    pairs = zip(one.ms, other.ms, strict=True)
    return replace(one, ms=tuple(tuple(map(min, row, beside)) for row, beside in pairs))


def _cache_file(cache: Path | None, shape: LayerShape, step: int, facts: Mapping[str, Any]) -> Path | None:
    if cache is None:
        return None
    content = {
        "shape": asdict(shape),
        "step": step,
        **{key: facts[key] for key in ("runtime", "version", "num_threads", "device")},
    }
    return cache / f"layer-{sha256(repr(sorted(content.items())))[:24]}.json"


def _cached(file: Path) -> LayerTimes | None:
    """Read times back; nothing where there are none that can be read."""
    try:
        return LayerTimes.from_json(read_json(file))
    except (DataError, KeyError, TypeError):
        return None


def _calibrated(
    table: LatencyTable, model: nn.Module, groups: Sequence[Group], example_inputs: Any, watch: Timer
) -> LatencyTable:
    """Measure a model of about half the width beside the dense one, and let the table predict it."""
    counts = {name: units - min(w for w in table.widths[name] if 2 * w >= units) for name, units in _units(table)}
    if not any(counts.values()):
        return table
    removed = {name: range(number) for name, number in counts.items()}
    half = plan_removing(model, groups, removed, Budget(units=0.5), example_inputs=example_inputs, provenance={})
    return table.calibrated(counts, measured_share(model, half, watch) * table.dense_ms)


def _units(table: LatencyTable) -> list[tuple[str, int]]:
    return list(zip(table.groups, table.units, strict=True))


def _counts(plan: Plan) -> dict[str, int]:
    return {name: len(units) for name, units in plan.removed.items()}
