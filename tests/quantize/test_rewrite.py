from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessprune as hp
from hessprune.quantize.rewrite import aten, rewrite
from tests.quantize.nets import BUILDERS, images, network

REMOVED = {aten.batch_norm.default, aten.mean.dim, aten.hardswish.default, aten.hardsigmoid.default}
REMOVED |= {aten.pad.default, aten.slice.Tensor}


def captured(model, inputs):
    return torch.export.export(model.eval(), (inputs,)).module()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_function_stays_and_what_has_no_integers_goes(name):
    model, inputs = network(name).double(), images(3).double()
    graph = captured(model, inputs)
    rewrite(graph)
    assert torch.allclose(graph(inputs), model(inputs), atol=1e-10)
    assert not REMOVED & {node.target for node in graph.graph.nodes}
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    assert {name for name, _ in graph.named_parameters()} | {name for name, _ in graph.named_buffers()} == read


class Shared(nn.Module):
    """One convolution used twice, each time with a BatchNorm of its own, and one BatchNorm of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3, eps=0.1), nn.BatchNorm2d(3, affine=False)])
        self.linear, self.vectors = nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)
        for norm in (*self.norms, self.vectors):
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x):
        for norm in self.norms:
            x = norm(self.conv(x))
        return self.vectors(self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def test_shared_layers_are_folded_apart():
    torch.manual_seed(0)
    model, inputs = Shared().eval(), images(3)
    graph = captured(model, inputs)
    rewrite(graph)
    assert torch.allclose(graph(inputs), model(inputs), atol=1e-6)
    names = {name for name, _ in graph.named_parameters()}
    assert names == {"conv.weight", "conv.bias", "conv.weight_", "conv.bias_", "linear.weight", "linear.bias"}


def test_what_cannot_be_folded_stays():
    model, inputs = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), torch.randn(3, 4)
    nn.init.uniform_(model[1].running_mean)
    graph = captured(model, inputs)
    rewrite(graph)
    assert torch.equal(graph(inputs), model(inputs))
    assert aten.batch_norm.default in {node.target for node in graph.graph.nodes}
    x = torch.randn(2, 3, 4, 4)
    partial = captured(nn.AdaptiveAvgPool2d(2), x)
    rewrite(partial)
    assert torch.equal(partial(x), F.adaptive_avg_pool2d(x, 2))


@pytest.mark.parametrize(
    ("forward", "left"),
    [
        (lambda x: F.pad(x[:, :, ::2, ::3], (0, 0, 0, 0, 1, 2)), set()),
        (lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)), set()),
        (lambda x: F.pad(x[:, :, 1::2], (0, 0, 0, 0, 1, 0)), {aten.slice.Tensor}),
        (lambda x: F.pad(x[:, :2, ::2], (0, 0, 0, 0, 1, 0)), {aten.slice.Tensor}),
        (lambda x: F.pad(x, (1, 0, 0, 0, 1, 0)), {aten.pad.default}),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), {aten.pad.default}),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 0), value=2.0), {aten.pad.default}),
    ],
)
def test_shortcuts_of_zeros_become_convolutions(forward, left):
    class Shortcut(nn.Module):
        def forward(self, x):
            return forward(x)

    x = torch.randn(2, 3, 7, 5)
    graph = captured(Shortcut(), x)
    rewrite(graph)
    assert torch.equal(graph(x), forward(x))
    assert {node.target for node in graph.graph.nodes} & {aten.pad.default, aten.slice.Tensor} == left
    assert not any(parameter.requires_grad for parameter in graph.parameters())


@pytest.mark.parametrize("pool", [lambda x: x.mean((2, 3), keepdim=True), lambda x: F.adaptive_avg_pool2d(x, 1)])
def test_a_mean_over_space_takes_images_of_another_size(pool):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.head(pool(self.conv(x).relu())).flatten(1)

    model = Pooled().double().eval()
    graph = captured(model, torch.randn(2, 3, 8, 8).double())
    rewrite(graph)
    assert not REMOVED & {node.target for node in graph.graph.nodes}
    larger = torch.randn(2, 3, 14, 12).double()
    torch.testing.assert_close(torch.fx.GraphModule(graph, graph.graph)(larger), model(larger))


class Twice(nn.Module):
    """One layer on two values of different size, as a head of a detector reads maps of several scales."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x), self.layer(y)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_bias_is_rounded_for_each_use_of_its_layer(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, shape = (nn.Linear(8, 8), (64, 8)) if kind == "linear" else (nn.Conv2d(3, 8, 3), (64, 3, 8, 8))
    model, pair = Twice(layer).eval(), (torch.randn(shape), 0.1 * torch.randn(shape))
    int8 = hp.convert_qat(hp.calibrate(hp.prepare_qat(model, pair), [(pair, None)]))
    file = hp.export_onnx(int8, pair, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(file)
    fed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), pair, strict=True)}
    with torch.no_grad():
        answers = zip(model(*pair), int8(*pair), session.run(None, fed), strict=True)
    for dense, own, theirs in answers:
        for found in (own, torch.from_numpy(theirs)):
            assert float((found - dense).abs().max()) < 0.06 * float(dense.abs().max())


class Computed(nn.Module):
    """Layers whose weights are computed, one of them from a weight that is read plainly, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.attention = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MultiheadAttention(8, 2)
        self.up, self.low = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 8))
        self.classes = nn.Parameter(torch.randn(5, 4))
        self.back = nn.ConvTranspose2d(8, 4, 2)

    def forward(self, x):
        weight = self.body.weight - self.body.weight.mean((1, 2, 3), keepdim=True)
        image = self.norm(F.conv2d(x, weight, self.body.bias * 2)).relu()
        x = F.conv_transpose2d(image, self.back.weight * 0.5).mean((2, 3)) @ torch.ones(4, 8)
        x = x + self.attention(x[None], image.mean(2).permute(2, 0, 1), image.amax(2).permute(2, 0, 1))[0][0]
        x = F.linear(F.linear(x, self.up @ self.low), self.classes)
        return F.linear(F.normalize(F.linear(x, self.classes.t())), F.normalize(self.classes), torch.arange(5.0))


def test_weights_that_are_computed_are_rounded_as_others_are(tmp_path):
    torch.manual_seed(0)
    model, x = Computed().eval(), torch.randn(32, 3, 8, 8)
    data = [(x, torch.arange(32) % 5)]
    ready = hp.calibrate(hp.prepare_qat(model, x[:2]), data)
    assert not ready.fp32_layers
    int8 = hp.convert_qat(ready)
    assert {value.dtype for value in int8.state_dict().values() if value.dim() > 1} == {torch.int8}
    path = hp.export_onnx(int8, x[:2], tmp_path / "int8.onnx")
    expected = model(x).detach()
    session = onnxruntime.InferenceSession(str(path))
    theirs = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    for found in (int8(x).detach(), theirs):
        assert float((found - expected).abs().max() / expected.abs().max()) < 0.05
    ranked = hp.quantization_sensitivity(model, x[:2], data)
    assert set(ranked) == {"", "body", "back", "attention", "attention.out_proj"}
    assert all(0 < layer.weights < 0.1 for layer in ranked.values())
    assert hp.choose_fp32_layers(model, x[:2], data, tolerance=90) == {}


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.make, self.head = nn.Linear(6, 8), nn.Linear(6, 64), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        x = F.linear(self.body(x), self.make(x).mean(0).view(8, 8)).relu()
        return F.linear(x, self.head.weight, x.mean(0)[:3])


def test_weights_and_biases_that_depend_on_the_inputs_stay_in_floats(tmp_path):
    torch.manual_seed(0)
    model, x = Dynamic().eval(), torch.randn(32, 6)
    ready = hp.prepare_qat(model, x)
    assert list(ready.fp32_layers.values()) == ["weights that depend on the inputs"]
    int8 = hp.convert_qat(hp.calibrate(ready, [3 * x]))
    assert hp.export_onnx(int8, x, tmp_path / "int8.onnx", tolerance=0.05).exists()
    expected = model(x).detach()
    assert float((int8(x) - expected).abs().max() / expected.abs().max()) < 0.1
