"""How long single layers and whole models take in ONNX Runtime."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.target import LatencyTarget
from hessprune.deploy.export import export_onnx
from hessprune.deploy.onnx_model import onnx_session
from hessprune.foundation.trees import to_device
from hessprune.latency.measure import latency_rounds
from hessprune.latency.onnx_layers import layer_bytes
from hessprune.latency.timers import ROUNDS, Case, quiet_mean
from hessprune.planning.inputs import describe_inputs
from hessprune.quantize import calibrate, convert_qat, prepare_qat

MOVING = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
"""Operators that bring a lone layer into the runtime's own layout and back; a layer of a network has none."""


class OnnxTimer:
    """Times ONNX files, which lie in `folder` meanwhile."""

    def __init__(self, example_inputs: Any, target: LatencyTarget, folder: Path) -> None:
        self._example, self._target, self._folder = to_device(example_inputs, "cpu"), target, folder
        self._int8 = target.runtime == "onnxruntime-int8"
        self._files: list[tuple[nn.Module, Path]] = []

    def layers(self, cases: Sequence[Case]) -> list[float]:
        """Return the milliseconds of each layer's kernel, by ONNX Runtime's own profile."""
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
        """Return the milliseconds of each model's file, in rounds; a model is exported once."""
        files = {name: self._file(model) for name, model in models.items()}
        threads, repeats = self._target.num_threads, self._target.repeats
        return latency_rounds(files, self._example, num_threads=threads, warmup=3, repeats=repeats)

    def _file(self, model: nn.Module) -> Path:
        known = next((path for other, path in self._files if other is model), None)
        if known is None:
            known = self._folder / f"model-{len(self._files)}.onnx"
            export_onnx(self._integers(model) if self._int8 else model, self._example, known, check=False)
            self._files.append((model, known))
        return known

    def _integers(self, model: nn.Module) -> nn.Module:
        """Quantise a model; where its ranges lie does not change how long it takes."""
        prepared = prepare_qat(model, self._example)
        return convert_qat(calibrate(prepared, [(describe_inputs(self._example).example(), None)], method="minmax"))


def _kernel_ms(profile: Path) -> float:
    """Return the milliseconds of all kernels of a layer, without the first run."""
    times: dict[str, list[float]] = {}
    for event in json.loads(profile.read_text("utf-8")):
        is_kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if is_kernel and event["args"]["op_name"] not in MOVING:
            times.setdefault(event["name"], []).append(event["dur"] / 1e3)
    return sum(quiet_mean(values[1:]) for values in times.values())
