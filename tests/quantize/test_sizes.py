import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprune as hp
from hessprune.errors import DataError
from hessprune.foundation.quiet import quiet

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")


class Net(nn.Module):
    def __init__(self, end) -> None:
        super().__init__()
        self.conv, self.head, self.end = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1, bias=False), end

    def forward(self, x):
        return self.end(self.head(F.relu(self.conv(x))), x)


FIXED = {
    "interpolate": lambda y, x: F.interpolate(F.max_pool2d(y, 2), size=x.shape[-2:]),
    "view": lambda y, x: y.view(-1, 2, x.shape[2] * x.shape[3]).sum(2),
    "number": lambda y, x: y.sum((2, 3)) / (x.shape[2] * x.shape[3]),
}
FREE = {
    "mean": lambda y, x: y.mean((2, 3)),
    "flatten": lambda y, x: y.flatten(2).amax(2),
    "scale": lambda y, x: F.interpolate(y, scale_factor=2.0),
}


def converted(end, example):
    torch.manual_seed(0)
    model = Net(end).eval()
    return model, hp.convert_qat(hp.calibrate(hp.prepare_qat(model, example), [torch.rand(8, 3, 12, 12)]))


@pytest.mark.parametrize("name", FIXED)
def test_images_of_a_size_that_the_graph_would_compute_wrongly_are_refused(name):
    model, int8 = converted(FIXED[name], torch.zeros(1, 3, 12, 12))
    assert int8(torch.rand(5, 3, 12, 12)).shape[0] == 5
    for wrong in (int8, copy.deepcopy(int8)):
        with pytest.raises(DataError, match=r"got float32 \(2, 3, 18, 18\) for \(any, 3, 12, 12\)"):
            wrong(torch.rand(2, 3, 18, 18))
    ready = hp.prepare_qat(model, torch.rand(1, 3, 12, 12))
    with pytest.raises(DataError, match="Resize them, or pass an example of that size"):
        hp.calibrate(ready, [torch.rand(2, 3, 18, 18)])
    with pytest.raises(DataError, match="for \\(any, 3, 12, 12\\)"):
        hp.evaluate(int8, [(torch.rand(2, 3, 18, 18), torch.zeros(2).long())])


@pytest.mark.parametrize("name", FREE)
def test_images_of_another_size_pass_where_the_graph_is_right(name):
    model, int8 = converted(FREE[name], torch.zeros(1, 3, 12, 12))
    x = torch.rand(3, 3, 15, 21)
    expected = model(x).detach()
    assert float((int8(x) - expected).abs().max() / expected.abs().max()) < 0.1


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x, edges):
        h = F.relu(self.first(x))
        return self.last(torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]]))


def test_arguments_by_name_have_their_own_sizes():
    example = {"x": torch.rand(12, 6), "edges": torch.randint(0, 12, (2, 30))}
    ready = hp.prepare_qat(Graph().eval(), example)
    assert ready.sizes == {"x": [(None, 6)], "edges": [(2, None)]}
    data = {"x": torch.rand(20, 6), "edges": torch.randint(0, 20, (2, 44))}
    assert hp.convert_qat(hp.calibrate(ready, [data]))(**data).shape == (20, 2)
