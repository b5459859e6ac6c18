"""Measure a latency table, and correct it on the models that are planned with it."""

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
from hessprune.deploy.axes import resized
from hessprune.errors import DataError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.files import read_json, sha256, write_json
from hessprune.foundation.progress import progress_bar, track
from hessprune.foundation.trees import leading_size
from hessprune.latency.onnx_timer import OnnxTimer
from hessprune.latency.timers import Case, Timer, TorchTimer
from hessprune.planning.plan import Plan
from hessprune.planning.planner import plan_removing
from hessprune.structure.belonging import check_groups
from hessprune.structure.groups import Group
from hessprune.surgery.apply import apply_plan

PASSES = 2
"""Passes over all layer shapes; the faster pass counts, because a slow spell may last for a whole shape."""
TOLERANCE = 0.03
"""Largest relative error of the predicted share of the dense latency at which a plan is accepted."""
ROUNDS = 4
"""Largest number of plans that are measured."""


def latency_table(
    model: nn.Module,
    groups: Sequence[Group],
    example_inputs: Any,
    target: LatencyTarget | None = None,
    *,
    cache_dir: Path | str | None = None,
    timer: Timer | None = None,
) -> LatencyTable:
    """Measure a table that predicts the latency of a model with any units removed, on this machine.

    Layers of one shape (kernel, stride, size of the input …) are timed once, on a grid of widths. The latencies of the
    dense model and of a model of about half its width then calibrate the time of all other operators.

    Cost: some runs of each shape at each width of the grid, seconds to minutes in all; none of the shapes that
    `cache_dir` holds.

    Args:
        model: The dense model; stays untouched.
        groups: From `find_groups`.
        example_inputs: A tensor, tuple or dict.
        target: Runtime, threads and batch size.
        cache_dir: A folder that keeps the times of layers by shape, type of numbers, runtime, version, threads
            and processor.
        timer: Measures layers and models; that of the runtime by default.

    Returns:
        The table, for `Budget(latency_ms=…, target=table)`.

    Raises:
        MissingDependencyError: `target` names ONNX Runtime, and a package to export or run the model is not installed.
        UnsupportedModelError: The model cannot be exported to ONNX Runtime.

    Example:
        >>> import torch, hessprune as hp
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> x = torch.zeros(16, 64)
        >>> table = hp.latency_table(net, hp.find_groups(net, x), x)
        >>> 0 < table.ms({"0": 128}) <= table.ms() == table.dense_ms
        True
    """
    target = target or LatencyTarget()
    groups = check_groups(model, groups)
    example = resized(example_inputs, target.batch_size or leading_size(example_inputs))
    facts = target.facts(model, leading_size(example))
    with timing(model, example, target, timer) as active_timer:
        layers = find_layers(model, groups, example)
        shapes = list(dict.fromkeys(layer.shape for layer in layers.layers))
        dense_ms = statistics.median(times["dense"] for times in active_timer.models({"dense": model}))
        table = LatencyTable(
            groups=tuple(group.name for group in groups),
            units=tuple(group.num_units for group in groups),
            steps=tuple(unit_step(group, target.round_to) for group in groups),
            layers=layers,
            times=_timed(shapes, active_timer, target.round_to, facts, None if cache_dir is None else Path(cache_dir)),
            dense_ms=dense_ms,
            target=facts,
        )
        return _calibrated(table, model, groups, example, active_timer)


def settled(
    table: LatencyTable,
    model: nn.Module,
    example_inputs: Any,
    plan_with: Callable[[LatencyTable], Plan],
    *,
    timer: Timer | None = None,
) -> LatencyTable:
    """Plan with a table, measure the plan and correct the table until it predicts the plan, at most `ROUNDS` times.

    Args:
        table: From `latency_table`.
        model: The dense model.
        example_inputs: A tensor, tuple or dict.
        plan_with: Makes a plan with a table.
        timer: Measures layers and models; that of the runtime by default.

    Returns:
        The corrected table, checked on the last plan.
    """
    target = LatencyTarget.of(table.target)
    example = resized(example_inputs, table.target["batch_size"])
    with timing(model, example, target, timer) as active_timer, progress_bar("measuring plans", ROUNDS) as bar:

        def measure() -> tuple[dict[str, int], float, float]:
            plan = plan_with(table)
            counts, share = _counts(plan), measured_share(model, plan, active_timer)
            predicted = table.ms(counts) / table.dense_ms
            bar.advance(note=f"{share:.3f} of the dense latency, predicted {predicted:.3f}")
            return counts, share, predicted

        counts, share, predicted = measure()
        for _ in range(ROUNDS - 1):
            if abs(predicted / share - 1) <= TOLERANCE:
                break
            table = table.corrected(counts, share)
            counts, share, predicted = measure()
        return table.checked(counts, share)


def with_measured_latency(plan: Plan, model: nn.Module, example_inputs: Any, *, timer: Timer | None = None) -> Plan:
    """Add the measured latency of the pruned model to a plan, unless its table was checked on this plan already."""
    facts = plan.provenance["latency"]
    if "measured_ms" in facts:
        return plan
    example = resized(example_inputs, facts["batch_size"])
    with timing(model, example, LatencyTarget.of(facts), timer) as active_timer:
        measured_ms = float(f"{measured_share(model, plan, active_timer) * facts['dense_ms']:.6g}")
    return replace(plan, provenance={**plan.provenance, "latency": {**facts, "measured_ms": measured_ms}})


def measured_share(model: nn.Module, plan: Plan, timer: Timer) -> float:
    """Return the latency of the pruned model over that of the dense model: the median ratio over rounds of calls."""
    rounds = timer.models({"dense": model, "pruned": apply_plan(model, plan, check=False)})
    return statistics.median(times["pruned"] / times["dense"] for times in rounds)


@contextmanager
def timing(model: nn.Module, example_inputs: Any, target: LatencyTarget, timer: Timer | None = None) -> Iterator[Timer]:
    """Yield `timer`, or by default the timer of the target's runtime."""
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
    shapes: Sequence[LayerShape], timer: Timer, step: int, facts: Mapping[str, Any], cache: Path | None
) -> tuple[LayerTimes, ...]:
    """Return the times of all shapes; read them from the cache, and measure the others."""
    files = [_cache_file(cache, shape, step, facts) for shape in shapes]
    times = [None if file is None else _cached(file) for file in files]
    missing = [number for number, cached in enumerate(times) if cached is None]
    for number in track(missing * PASSES, "timing layers"):
        latest, earlier = _on_grid(shapes[number], timer, step), times[number]
        times[number] = latest if earlier is None else _faster(earlier, latest)
    for number in missing:
        file, measured = files[number], times[number]
        if file is not None and measured is not None:
            write_json(file, measured.to_json())
    return tuple(measured for measured in times if measured is not None)


def _on_grid(shape: LayerShape, timer: Timer, step: int) -> LayerTimes:
    inputs, outputs = grid(shape, step)
    ms = timer.layers([Case(shape, i, o) for i in inputs for o in outputs])
    rows = (tuple(ms[start : start + len(outputs)]) for start in range(0, len(ms), len(outputs)))
    return LayerTimes(shape=shape, inputs=inputs, outputs=outputs, ms=tuple(rows))


def _faster(first: LayerTimes, second: LayerTimes) -> LayerTimes:
    """Return the shorter of two times at each point of the grid."""
    pairs = zip(first.ms, second.ms, strict=True)
    return replace(first, ms=tuple(tuple(map(min, *rows)) for rows in pairs))


def _cache_file(cache: Path | None, shape: LayerShape, step: int, facts: Mapping[str, Any]) -> Path | None:
    if cache is None:
        return None
    content = {
        "shape": asdict(shape),
        "step": step,
        **{key: facts[key] for key in ("runtime", "version", "num_threads", "device", "dtype")},
    }
    return cache / f"layer-{sha256(repr(sorted(content.items())))[:24]}.json"


def _cached(file: Path) -> LayerTimes | None:
    """Read times from a file; return None if the file is missing or cannot be read."""
    try:
        return LayerTimes.from_json(read_json(file))
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _calibrated(
    table: LatencyTable, model: nn.Module, groups: Sequence[Group], example_inputs: Any, timer: Timer
) -> LatencyTable:
    """Measure a model of about half the width beside the dense model, and calibrate the table on it."""
    counts = {name: units - min(w for w in table.widths[name] if 2 * w >= units) for name, units in _units(table)}
    if not any(counts.values()):
        return table
    removed = {name: range(number) for name, number in counts.items()}
    half = plan_removing(model, groups, removed, Budget(units=0.5), example_inputs=example_inputs, provenance={})
    return table.calibrated(counts, measured_share(model, half, timer) * table.dense_ms)


def _units(table: LatencyTable) -> list[tuple[str, int]]:
    return list(zip(table.groups, table.units, strict=True))


def _counts(plan: Plan) -> dict[str, int]:
    return {name: len(units) for name, units in plan.removed.items()}
