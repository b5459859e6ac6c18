"""Milliseconds of each layer's own call, before and after pruning."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from hessprune.foundation.files import read_json, write_json
from hessprune.foundation.modules import call_model, device_of
from hessprune.foundation.state import evaluation_mode, torch_threads
from hessprune.lab.context import Model, Run
from hessprune.lab.environment import timed_on
from hessprune.lab.report.run_report import LayerRow

WARM_UP = 5


def layer_latencies(run: Run, dense: Model, smaller: Model) -> dict[str, tuple[float, float]]:
    """Return milliseconds before and after of all layers of both models, in a stage of its own.

    Nothing is timed on a GPU, which runs behind the calls.
    """
    repeats, number = run.settings.report.latency_repeats, run.settings.report.latency_batch_size

    def make(folder: Path) -> None:
        models = [dense.model, smaller.model]
        cpu = all(device_of(model).type == "cpu" for model in models)
        found = layer_times(models, run.data.example("test", number), repeats=repeats) if cpu else [{}, {}]
        write_json(folder / "layers.json", found)

    stage = run.store.run("7-latency-layers", make, dense.stage, smaller.stage, repeats, number, timed_on(run))
    before, after = read_json(stage.file("layers.json"))
    return {name: (before[name], after[name]) for name in before if name in after}


def with_times(rows: Sequence[LayerRow], times: Mapping[str, tuple[float, float]]) -> tuple[LayerRow, ...]:
    """Return rows with the milliseconds of their layers; a layer that is never called by itself has none."""
    return tuple(replace(row, ms=times.get(row.name)) for row in rows)


def layer_times(models: Sequence[nn.Module], inputs: Any, *, repeats: int = 50) -> list[dict[str, float]]:
    """Return the median milliseconds of each module's call, for several models that take turns.

    The calls of a module that runs more than once are added up. Each time holds what its hooks cost, some microseconds.

    Args:
        models: Modules on the CPU; left as they are.
        inputs: What all models take.
        repeats: Timed forward passes of each model, on one thread.

    Returns:
        For each model: milliseconds by module name, of the modules that hold parameters of their own.
    """
    rounds: list[list[dict[str, float]]] = [[] for _ in models]
    with torch_threads(1), torch.inference_mode():
        for number in range(WARM_UP + repeats):
            for model, kept in zip(models, rounds, strict=True):
                with evaluation_mode(model), _clocks(model) as spent:
                    call_model(model, inputs)
                if number >= WARM_UP:
                    kept.append(dict(spent))
    return [{name: median(times[name] for times in kept) for name in kept[0]} for kept in rounds]


@contextmanager
def _clocks(model: nn.Module) -> Iterator[dict[str, float]]:
    """Let each module with parameters of its own add the milliseconds of its calls to a dict."""
    spent: dict[str, float] = {}
    started: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue

        def start(*_: Any, name: str = name) -> None:
            started[name] = time.perf_counter()

        def stop(*_: Any, name: str = name) -> None:
            spent[name] = spent.get(name, 0.0) + 1e3 * (time.perf_counter() - started[name])

        handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
