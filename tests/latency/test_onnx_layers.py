"""Layers on their own: what is timed is the layer of the network, in every runtime."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.layer_shapes import LayerShape, find_layers
from hessprune.costs.layer_times import Interpolation, LayerTimes, grid, widths
from hessprune.costs.target import LatencyTarget
from hessprune.errors import UnsupportedModelError
from hessprune.latency.onnx_layers import layer_bytes
from hessprune.latency.onnx_timer import OnnxTimer
from hessprune.latency.table import latency_table
from hessprune.latency.timers import Case, TorchTimer, quiet_mean
from hessprune.structure.find import find_groups

CONVOLUTIONS = (
    nn.Conv2d(6, 8, 3, stride=2, padding=1),
    nn.Conv2d(6, 8, (3, 1), padding=(1, 0), dilation=(2, 1), groups=2),
    nn.Conv2d(8, 8, 3, groups=8),
    nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
    nn.Conv1d(6, 8, 3, padding=1),
)


def shape_of(layer: nn.Module, x: torch.Tensor) -> LayerShape:
    (found,) = find_layers(layer, [], x).layers
    return found.shape


def inputs_of(layer: nn.Module) -> torch.Tensor:
    axes = 1 if isinstance(layer, nn.Conv1d) else 2
    return torch.zeros(2, layer.in_channels, *(9,) * axes)  # type: ignore[arg-type]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("layer", [*CONVOLUTIONS, nn.Linear(6, 5)], ids=str)
def test_the_file_of_a_layer_computes_the_layers_shape(layer: nn.Module, int8: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    x = torch.zeros(3, 6) if isinstance(layer, nn.Linear) else inputs_of(layer)
    shape = shape_of(layer, x)
    file, example = layer_bytes(Case(shape, shape.inputs, shape.outputs), int8=int8)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": example})
    assert found.shape == tuple(layer(x).shape)
    assert found.dtype == (np.uint8 if int8 and not isinstance(layer, nn.ConvTranspose2d) else np.float32)


@pytest.mark.parametrize("layer", [*CONVOLUTIONS, nn.Linear(6, 5)], ids=str)
def test_torch_runs_the_same_layer(layer: nn.Module) -> None:
    x = torch.zeros(3, 6) if isinstance(layer, nn.Linear) else inputs_of(layer)
    shape = shape_of(layer, x)
    timer = TorchTimer(layer, x, LatencyTarget())
    case = Case(shape, shape.inputs, shape.outputs)
    assert timer._call(case)().shape == layer(x).shape
    assert timer.layers([case])[0] > 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-int8"])
def test_a_table_of_onnx_runtime(runtime: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "torchao"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    x = torch.randn(1, 3, 8, 8)
    target = LatencyTarget(runtime=runtime, batch_size=4, repeats=3)  # type: ignore[arg-type]
    table = latency_table(net, find_groups(net, x), x, target)
    assert table.target["batch_size"] == 4
    assert table.target["version"]
    assert all(value > 0 for item in table.times for row in item.ms for value in row)
    assert LatencyTable.from_json(table.to_json()) == table


def test_a_grouped_layer_shrinks_as_a_whole() -> None:
    whole = LayerShape(
        kind="convolution", inputs=24, outputs=48, rows=(1, 8), kernel=(3,), groups=8, inputs_per_group=3
    )
    assert whole.at(24, 18) == (9, 18, 3)
    assert grid(whole, 8) == ((24,), (6, 12, 18, 24, 36, 48))
    thinner = LayerShape(kind="convolution", inputs=24, outputs=48, rows=(1, 8), kernel=(3,), groups=8)
    assert thinner.at(16, 24) == (16, 24, 8)
    assert grid(thinner, 8) == ((8, 16, 24), (8, 16, 24, 32, 48))


@pytest.mark.parametrize(("dense", "step"), [(512, 8), (64, 8), (24, 8), (7, 8), (100, 1), (1, 1)])
def test_grids_are_short_and_end_at_the_dense_width(dense: int, step: int) -> None:
    points = grid(LayerShape(kind="linear", inputs=dense, outputs=3, rows=(1,), varying=(True, False)), step)
    assert points[1] == (3,)
    assert len(points[0]) <= 6
    assert points[0][-1] == dense
    assert points[0][0] == min(step, dense)
    assert set(points[0]) <= set(widths(dense, step))


def test_interpolation_is_bilinear_within_the_grid_and_flat_outside() -> None:
    generator = np.random.default_rng(0)
    axes = ((8, 16, 32), (4, 8)), ((5,), (1, 2, 9, 10)), ((3,), (7,))
    shape = LayerShape(kind="linear", inputs=1, outputs=1, rows=(1,))
    tables = []
    for inputs, outputs in axes:
        ms = tuple(map(tuple, generator.random((len(inputs), len(outputs))).tolist()))
        tables.append(LayerTimes(shape=shape, inputs=inputs, outputs=outputs, ms=ms))
    owners = [0, 2, 1, 0]
    own = Interpolation(tables, owners)
    sizes = generator.uniform(1, 40, (20, 2, len(owners)))
    found = own(sizes[:, 0], sizes[:, 1])
    for row in range(20):
        for number, owner in enumerate(owners):
            assert found[row, number] == pytest.approx(slowly(tables[owner], *sizes[row, :, number]))


def slowly(table: LayerTimes, x: float, y: float) -> float:
    """Interpolate along one axis, then along the other."""
    across = [float(np.interp(y, table.outputs, row)) for row in table.ms]
    return float(np.interp(x, table.inputs, across))


def test_the_longer_half_of_all_times_is_left_out() -> None:
    assert quiet_mean([3.0, 100.0, 1.0]) == 1.0
    assert quiet_mean([4.0, 2.0, 100.0, 50.0]) == 3.0


class FixedBatch(nn.Module):
    """Only runs with two samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).reshape(2, 4)


def test_the_remedy_for_a_model_that_is_not_exported_is_one_of_the_caller(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    timer = OnnxTimer(torch.randn(2, 4), LatencyTarget(runtime="onnxruntime"), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"or use LatencyTarget\(runtime='torch'\)") as caught:
        timer.models({"dense": FixedBatch()})
    assert "dynamic_batch" not in str(caught.value)
