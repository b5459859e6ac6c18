"""Measured latency of models and ONNX files: medians over repeats, with several models timed in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hessprune.deploy.onnx_model import onnx_feed, onnx_run, onnx_session
from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_numbers, check_range
from hessprune.foundation.modules import call_model, device_of, predict
from hessprune.foundation.progress import track
from hessprune.foundation.state import evaluation_mode, torch_threads
from hessprune.foundation.trees import leading_size, to_device


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Wall-clock time of one forward pass in milliseconds: median, 10th and 90th percentile over the repeats."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    num_threads: int
    batch_size: int
    runtime: Literal["torch", "onnxruntime"]
    device: str


def measure_latency(
    model: nn.Module | str | Path, example_inputs: Any, *, num_threads: int = 1, warmup: int = 10, repeats: int = 50
) -> Latency:
    """Time the forward pass of a model in torch, or of an ONNX file in ONNX Runtime.

    Args:
        model: A module, timed on its own device in evaluation and inference mode, or the path of an ONNX file, timed
            on the CPU.
        example_inputs: A tensor, tuple or dict with the batch size to measure.
        num_threads: CPU threads of the runtime; the setting of torch is restored afterwards.
        warmup: Calls before the clock starts.
        repeats: Timed calls.

    Returns:
        Median and percentiles. Compare two models with `compare_latency`: a busy machine disturbs it less.

    Raises:
        ArgumentError: A number is out of range, or the ONNX file is missing.
        DataError: The inputs do not fit the model.
        MissingDependencyError: `model` is a path, and ONNX Runtime is not installed.
        NumericalError: Weights hold no numbers.

    Example:
        >>> import torch, hessprune as hp
        >>> hp.measure_latency(torch.nn.Linear(4, 2), torch.zeros(8, 4), repeats=3).batch_size
        8
    """
    candidates = {"model": model}
    return compare_latency(candidates, example_inputs, num_threads=num_threads, warmup=warmup, repeats=repeats)["model"]


def compare_latency(
    models: Mapping[str, nn.Module | str | Path],
    example_inputs: Any,
    *,
    num_threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
) -> dict[str, Latency]:
    """Time several models in turns, one call per model and round, so that a slow spell of the machine hits them alike.

    Args:
        models: Modules or paths of ONNX files, by name.
        example_inputs: The inputs of all models: a tensor, tuple or dict.
        num_threads: CPU threads of the runtime.
        warmup: Rounds before the clock starts.
        repeats: Timed rounds.

    Returns:
        One `Latency` per name; quote ratios of the medians.

    Raises:
        ArgumentError: `models` is no mapping, a number is out of range, or an ONNX file is missing.
        DataError: The inputs do not fit a model.
        MissingDependencyError: A model is a path, and ONNX Runtime is not installed.

    Example:
        >>> import torch, hessprune as hp
        >>> models = {"a": torch.nn.Linear(4, 2), "b": torch.nn.Linear(4, 1)}
        >>> sorted(hp.compare_latency(models, torch.zeros(8, 4), repeats=3))
        ['a', 'b']
    """
    if not isinstance(models, Mapping):
        raise ArgumentError(
            f"`models` must be a mapping from names to models, got {type(models).__name__}. "
            "Write {'dense': model, 'pruned': pruned}."
        )
    rounds = latency_rounds(models, example_inputs, num_threads=num_threads, warmup=warmup, repeats=repeats)
    return {
        name: _summary(model, [times[name] for times in rounds], example_inputs, num_threads)
        for name, model in models.items()
    }


def latency_rounds(
    models: Mapping[str, nn.Module | str | Path], example_inputs: Any, *, num_threads: int, warmup: int, repeats: int
) -> list[dict[str, float]]:
    """Return the milliseconds of every model in every round of `compare_latency`.

    Raises:
        ArgumentError: A number is out of range, or an ONNX file is missing.
    """
    check_range("num_threads", num_threads, low=1, integer=True)
    check_range("warmup", warmup, low=0, integer=True)
    check_range("repeats", repeats, low=1, integer=True)
    with torch_threads(num_threads), torch.inference_mode():
        calls = {name: _timed_call(model, example_inputs, num_threads) for name, model in models.items()}
        for _ in range(warmup):
            for call in calls.values():
                call()
        return [{name: call() for name, call in calls.items()} for _ in track(range(repeats), "measuring latency")]


def _timed_call(model: nn.Module | str | Path, inputs: Any, num_threads: int) -> Callable[[], float]:
    """Return a function that runs the model once and returns the milliseconds of the call."""
    if not isinstance(model, nn.Module):
        run = _onnx_call(Path(model), inputs, num_threads)
        return lambda: _wall_clock_ms(run)
    check_numbers(model)
    moved = to_device(inputs, device_of(model))
    with evaluation_mode(model):
        predict(model, moved, "example_inputs")
    clock = clock_of(device_of(model))

    def timed() -> float:
        with evaluation_mode(model):
            return clock(lambda: call_model(model, moved))

    return timed


def clock_of(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """Return a clock of a device: a function that runs a function and returns the milliseconds of the call."""
    return _cuda_clock_ms if device.type == "cuda" else _wall_clock_ms


def _wall_clock_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _cuda_clock_ms(run: Callable[[], Any]) -> float:
    """Return the milliseconds between two events of the GPU, after all earlier kernels have ended."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _onnx_call(path: Path, inputs: Any, num_threads: int) -> Callable[[], Any]:
    session = onnx_session(path, num_threads)
    onnx_run(session, inputs)  # which names inputs that do not fit
    feed = onnx_feed(session, inputs)
    return lambda: session.run(None, feed)


def _summary(model: nn.Module | str | Path, times_ms: list[float], inputs: Any, num_threads: int) -> Latency:
    deciles = statistics.quantiles(times_ms, n=10, method="inclusive") if len(times_ms) > 1 else times_ms * 9
    is_module = isinstance(model, nn.Module)
    return Latency(
        median_ms=statistics.median(times_ms),
        p10_ms=deciles[0],
        p90_ms=deciles[-1],
        num_threads=num_threads,
        batch_size=leading_size(inputs),
        runtime="torch" if is_module else "onnxruntime",
        device=device_of(model).type if is_module else "cpu",
    )
