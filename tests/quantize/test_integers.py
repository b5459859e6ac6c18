"""Every kernel beside the one of ONNX Runtime, bit for bit: on x86 with AVX2 at least; elsewhere within one step."""

import numpy as np
import pytest
import torch

from hessprune.quantize import integers
from hessprune.quantize.integers import Grid
from hessprune.quantize.rewrite import aten

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
TOLERANCE = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1
DOMAINS = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]


def theirs(operator, x, constants, **attributes):
    """Run one node of ONNX Runtime on some tensors, with constants among its inputs."""
    helper, named = onnx.helper, {}
    inputs = {f"x{i}": value.numpy() for i, value in enumerate(x)}
    order = iter(inputs)
    for i, value in enumerate(constants):
        if value is None:
            named[next(order)] = None
        else:
            named[f"c{i}"] = onnx.numpy_helper.from_array(np.asarray(value), f"c{i}")
    domain = "" if operator in ("QuantizeLinear", "QLinearConv") else "com.microsoft"
    node = helper.make_node(operator, list(named), ["y"], domain=domain, **attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
    graph = helper.make_graph(
        [node],
        "kernel",
        [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in inputs.items()],
        [helper.make_empty_tensor_value_info("y")],
        [value for value in named.values() if value is not None],
    )
    model = helper.make_model(graph, opset_imports=DOMAINS, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, inputs)[0])


def of(grid):
    """Return a grid as ONNX Runtime takes it."""
    return np.float32(grid.scale), np.array(grid.zero, np.uint8)


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def grid(draw, *, finest=0.005, coarsest=0.1):
    return Grid(float(np.float32(draw.uniform(finest, coarsest))), int(draw.integers(0, 256)), torch.uint8)


def integer(draw, *shape):
    return torch.from_numpy(draw.integers(0, 256, shape, dtype=np.uint8))


def check_same(found, expected):
    assert found.dtype == expected.dtype
    assert int((found.int() - expected.int()).abs().max()) <= TOLERANCE


def test_quantising_divides_and_rounds_halves_to_even(draw):
    for _ in range(10):
        own = grid(draw)
        halves = torch.arange(-200, 200).add(0.5) * own.scale
        x = torch.cat([halves, torch.from_numpy(draw.normal(size=2000).astype(np.float32))])
        check_same(integers.quantize(x, own), theirs("QuantizeLinear", [x], [None, *of(own)]))


@pytest.mark.parametrize(("operator", "function"), [("QLinearAdd", integers.add), ("QLinearMul", integers.multiply)])
def test_sums_and_products_of_all_pairs(operator, function, draw):
    a, b = torch.arange(256, dtype=torch.uint8).repeat(256), torch.arange(256, dtype=torch.uint8).repeat_interleave(256)
    for _ in range(30):
        grids = (grid(draw), grid(draw), grid(draw))
        constants = [None, *of(grids[0]), None, *of(grids[1]), *of(grids[2])]
        check_same(function(a, b, grids=grids), theirs(operator, [a, b], constants))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((4, 4), (4, 4), 0), ((8, 8), (1, 1), 0), ((2, 2), (2, 2), 0), ((3, 3), (2, 2), 1)],
)
def test_means(kernel, stride, padding, draw):
    for _ in range(10):
        own, out = grid(draw), grid(draw)
        x = integer(draw, 8, 16, 8, 8)
        found = integers.average(x, arguments=([*kernel], [*stride], [padding] * 2), grids=(own, out))
        settings = {"kernel_shape": kernel, "strides": stride, "pads": [padding] * 4, "count_include_pad": 1}
        check_same(found, theirs("QLinearAveragePool", [x], [None, *of(own), *of(out)], **settings))


@pytest.mark.parametrize("groups", [1, 16])
def test_convolutions(groups, draw):
    for _ in range(10):
        own, out, x = grid(draw), grid(draw, finest=0.1, coarsest=0.5), integer(draw, 2, 16, 8, 8)
        weight = draw.integers(-64, 65, (16, 16 // groups, 3, 3)).astype(np.int8)
        bias = draw.integers(-3000, 3000, 16).astype(np.int32)
        scale = draw.uniform(0.001, 0.01, 16).astype(np.float32)
        weights = (torch.from_numpy(weight), torch.from_numpy(scale), torch.from_numpy(bias))
        arguments = ([1, 1], [1, 1], [1, 1], groups)
        found = integers.layer(aten.conv2d.default, x, weights, arguments=arguments, grids=(own, out))
        constants = [None, *of(own), weight, scale, np.zeros(16, np.int8), *of(out), bias]
        check_same(found, theirs("QLinearConv", [x], constants, pads=[1] * 4, group=groups))


@pytest.mark.parametrize("length", [64, 16384])
def test_linear_layers_whose_sums_fit_float32_or_do_not(length, draw):
    x, weight = integer(draw, 8, length), draw.integers(-20, 65, (5, length)).astype(np.int8)
    scale, bias = draw.uniform(0.001, 0.01, 5).astype(np.float32), draw.integers(-99, 99, 5).astype(np.int32)
    own, out = grid(draw)._replace(zero=3), grid(draw, finest=20, coarsest=40)
    weights = (torch.from_numpy(weight), torch.from_numpy(scale), torch.from_numpy(bias))
    sums = (x.long() - own.zero) @ weights[0].long().T + weights[2]
    assert (int(sums.abs().max()) >= 2**24) == (length > 64)
    floats = integers.layer(aten.linear.default, x, weights, arguments=(), grids=(own, None))
    assert torch.equal(floats, sums.float() * (weights[1] * torch.tensor(own.scale)))
    constants = [None, *of(own), weight, scale, np.zeros(5, np.int8), bias]
    assert torch.equal(floats, theirs("QGemm", [x], constants, transB=1))
    found = integers.layer(aten.linear.default, x, weights, arguments=(), grids=(own, out))
    check_same(found, theirs("QGemm", [x], [*constants, *of(out)], transB=1))
