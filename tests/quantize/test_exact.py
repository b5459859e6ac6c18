import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

import hessprune as hp
from hessprune.foundation.quiet import quiet
from hessprune.quantize import integers
from hessprune.quantize.exact import integer_graph
from hessprune.quantize.rewrite import aten
from tests.quantize.nets import batches, images
from tests.quantize.test_qat import check_same_as_file

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")


class Mixture(nn.Module):
    """Layers with an integer kernel and without, activations that a quantiser makes superfluous and others."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, groups=2)
        self.transposed, self.hidden = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(4 * 12 * 12, 16)
        self.head, self.drop = nn.Linear(16, 5, bias=False), nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(F.relu6(self.grouped(self.drop(torch.relu(self.plain(x))))))
        x = F.avg_pool2d(self.transposed(torch.sigmoid(x) * x), 3, 2, 1)
        return self.head(self.drop(torch.relu(self.hidden(x.flatten(1)))))


def converted(model, **settings):
    ready = hp.prepare_qat(model, images(2), **settings)
    return hp.convert_qat(hp.calibrate(ready, batches(), method="minmax", rounding="nearest"))


@pytest.fixture(scope="module")
def mixture():
    torch.manual_seed(0)
    return converted(Mixture().eval())


def called(model) -> Counter[object]:
    """Return how often each function is called in the graph of integers."""
    return Counter(node.target for node in integer_graph(model).graph.nodes if node.op == "call_function")


def test_what_has_a_kernel_runs_in_integers_and_the_rest_in_floats(mixture, tmp_path):
    found = called(mixture)
    assert found[integers.layer] == 4
    assert found[integers.multiply] == found[integers.average] == 1
    assert found[aten.conv_transpose2d.input] == found[aten.sigmoid.default] == 1
    assert not {aten.conv2d.default, aten.linear.default, aten.relu.default, aten.mul.Tensor} & set(found)
    check_same_as_file(mixture, hp.export_onnx(mixture, images(2), tmp_path / "int8.onnx"))


def test_an_activation_that_the_grid_does_not_imply_stays_with_its_layer_in_floats(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Hardtanh(-0.1, 0.1), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(576, 5)]
    clamped = converted(nn.Sequential(*layers))
    assert called(clamped)[integers.layer] == 3
    check_same_as_file(clamped, hp.export_onnx(clamped, images(2), tmp_path / "int8.onnx"))
    layers[1] = nn.ReLU()
    symmetric = called(converted(nn.Sequential(*layers), activations="symmetric"))
    assert symmetric[integers.layer] == 2
    assert symmetric[aten.relu.default] == symmetric[aten.conv2d.default] == 1
    kept = called(converted(nn.Sequential(*layers), keep_fp32=["0"]))
    assert (kept[integers.layer], kept[aten.conv2d.default]) == (2, 1)


def test_the_graph_stays_the_one_to_export_and_to_compile(mixture):
    captured = torch.export.export(mixture, (images(2),), strict=False)
    assert called(mixture)[integers.layer]
    for graph in (captured.graph, mixture.graph):
        names = {str(node.target) for node in graph.nodes}
        assert {"aten.conv2d.default", "quantized_decomposed.quantize_per_tensor.default"} <= names
    compiled = torch.compile(mixture, backend="eager")
    with torch.no_grad():
        assert float((compiled(images(2)) - mixture(images(2))).abs().max()) < 0.1
        inductor = converted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), target="x86-inductor")
        assert torch.equal(inductor(images(2)), GraphModule(inductor, inductor.graph)(images(2)))


def test_copies_and_changed_buffers_are_followed(mixture):
    x = images(4, 3)
    with torch.no_grad():
        before = mixture(x)
        other = copy.deepcopy(mixture)
        assert torch.equal(other(x), before)
        for name, value in other.state_dict().items():
            if name.startswith("_frozen_param"):
                value.zero_()
        assert not torch.equal(other(x), before)
        assert torch.equal(mixture(x), before)
        assert not torch.equal(other.train()(x), mixture.train()(x))
        assert not torch.equal(mixture(x), mixture(x))  # dropout
        assert torch.equal(mixture.eval()(x), before)
