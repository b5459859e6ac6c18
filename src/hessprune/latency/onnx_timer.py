"""Latency of single layers and whole models in ONNX Runtime."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.target import LatencyTarget
from hessprune.deploy.axes import Axes
from hessprune.deploy.export import write_onnx
from hessprune.deploy.onnx_model import onnx_session
from hessprune.foundation.modules import device_of
from hessprune.foundation.trees import to_device
from hessprune.latency.measure import latency_rounds
from hessprune.latency.onnx_layers import layer_bytes
from hessprune.latency.timers import ROUNDS, Case, quiet_mean
from hessprune.planning.inputs import describe_inputs

MOVING = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
"""Operators that convert the layout of a tensor. A single layer needs them around it, a layer inside a network not."""


REMEDY = "Remove data-dependent Python and fixed batch sizes from its forward, or use LatencyTarget(runtime='torch')."


class OnnxTimer:
    """Times layers and models as ONNX files, and writes the files to `folder`."""

    def __init__(self, example_inputs: Any, target: LatencyTarget, folder: Path) -> None:
        self._example, self._target, self._folder = to_device(example_inputs, "cpu"), target, folder
        self._int8 = target.runtime == "onnxruntime-int8"
        self._files: list[tuple[nn.Module, Path]] = []

    def layers(self, cases: Sequence[Case]) -> list[float]:
        """Return the milliseconds of each layer's kernels, from the profile of ONNX Runtime."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            sessions = []
            for number, case in enumerate(cases):
                file, x = layer_bytes(case, int8=self._int8)
                profile = Path(folder) / f"{number}-"
                sessions.append((onnx_session(file, self._target.num_threads, profile=profile), x))
            for _ in range(ROUNDS + 1):
                for session, x in sessions:
                    session.run(None, {"x": x})
            return [_kernel_ms(Path(session.end_profiling())) for session, _ in sessions]

    def models(self, models: Mapping[str, nn.Module]) -> list[dict[str, float]]:
        """Return the milliseconds of each model's file, in rounds; every model is exported once."""
        files = {name: self._file(model) for name, model in models.items()}
        threads, repeats = self._target.num_threads, self._target.repeats
        return latency_rounds(files, self._example, num_threads=threads, warmup=3, repeats=repeats)

    def _file(self, model: nn.Module) -> Path:
        file = next((path for known_model, path in self._files if known_model is model), None)
        if file is None:
            file = self._folder / f"model-{len(self._files)}.onnx"
            exported = self._integers(model) if self._int8 else model
            example = to_device(self._example, device_of(exported))
            write_onnx(exported, example, file, axes=Axes(), remedy=REMEDY)
            self._files.append((model, file))
        return file

    def _integers(self, model: nn.Module) -> nn.Module:
        """Quantise a model with random inputs: its latency does not depend on its activation ranges."""
        from hessprune.quantize.qat import calibrate, convert_qat, prepare_qat  # torchao loads slowly

        prepared = prepare_qat(model, self._example)
        return convert_qat(calibrate(prepared, [(describe_inputs(self._example).example(), None)], method="minmax"))


def _kernel_ms(profile: Path) -> float:
    """Return the summed milliseconds of all kernels of a layer, without the first run."""
    times: dict[str, list[float]] = {}
    for event in json.loads(profile.read_text("utf-8")):
        is_kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if is_kernel and event["args"]["op_name"] not in MOVING:
            times.setdefault(event["name"], []).append(event["dur"] / 1e3)
    return sum(quiet_mean(values[1:]) for values in times.values())
