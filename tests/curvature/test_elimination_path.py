"""Losses along an elimination, against regressions and losses computed the long way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprune.curvature.elimination_losses import COLUMNS, LIKELIEST
from hessprune.curvature.elimination_path import eliminated_losses
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.results import ParamSlice
from hessprune.errors import DataError
from hessprune.layers.input_moments import DAMPING


def damped(covariance):
    return covariance + DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)


class Reader(nn.Module):
    """A linear function of its input, so that predicted and measured losses agree."""

    def __init__(self, layer, size):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(size, 1)

    def forward(self, x):
        return self.head(self.layer(x).flatten(1))


LAYERS = {
    "convolution": (nn.Conv2d(4, 3, 3, padding=1), (4, 5, 5), 75),
    "strided": (nn.Conv2d(4, 3, 3, stride=2), (4, 5, 5), 12),
    "pointwise": (nn.Conv1d(4, 3, 1), (4, 6), 18),
    "linear": (nn.Linear(4, 5), (4,), 5),
    "tokens": (nn.Linear(4, 5), (6, 4), 30),
    "no bias": (nn.Linear(4, 5, bias=False), (4,), 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_predicted_losses_are_the_measured_ones(name):
    layer, shape, size = LAYERS[name]
    torch.manual_seed(0)
    model = Reader(layer, size).double().requires_grad_(False)
    axis = 1 if isinstance(layer, nn.Linear) and len(shape) == 2 else 0
    mixing = torch.randn(4, 4, dtype=torch.float64)
    x = (
        torch.tensordot(mixing, torch.randn(40, *shape, dtype=torch.float64), ([1], [1 + axis])).movedim(0, 1 + axis)
        + 1
    )
    piece = ParamSlice(param="layer.weight", dim=1, index=torch.arange(4)[:, None])
    path = eliminated_losses(model, {"x": [piece]}, [(x, model(x))], loss_fn=F.mse_loss, precision="fp64")["x"]
    assert sorted(path.order.tolist()) == [0, 1, 2, 3]
    rows = patches(layer, x)
    for count in range(1, 5):
        dense = model(x)
        kept, old = (
            refit(layer, rows, path.order[:count].tolist()),
            {k: v.clone() for k, v in layer.state_dict().items()},
        )
        layer.weight.copy_(kept[0].view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.add_(kept[1])
        measured = float(F.mse_loss(model(x), dense))
        layer.load_state_dict(old)
        torch.testing.assert_close(float(path.loss[count - 1]), measured, rtol=1e-8, atol=1e-12)


def patches(layer, x):
    """Inputs of the layer as rows `(R, K)`, channels outermost."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    if isinstance(layer, nn.Conv1d):
        return x.movedim(1, -1).flatten(0, -2)
    return F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).movedim(1, -1).flatten(0, -2)


def refit(layer, rows, gone):
    """New weights `(O, K)` without some channels, and by how much the bias moves."""
    weight = layer.weight.flatten(1).T
    size = len(weight) // 4
    left = [place for place in range(len(weight)) if place // size not in gone]
    lost = [place for place in range(len(weight)) if place // size in gone]
    mean = rows.mean(0) * (layer.bias is not None)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    new = torch.zeros_like(weight)
    if left:
        shift = torch.linalg.solve(damped(covariance)[left][:, left], covariance[left][:, lost] @ weight[lost])
        new[left] = weight[left] + shift
    return new.T, (mean @ (weight - new))


@pytest.mark.parametrize("classes", [2, 4, COLUMNS + 3])
def test_losses_of_classes_are_those_of_shifted_logits(classes):
    """Logits beyond the highest move by the mean of these, which are weighted by their probabilities."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, classes)).double().requires_grad_(False)
    x, y = torch.randn(40, 4, dtype=torch.float64) @ torch.randn(4, 4).double() + 1, torch.arange(40) % classes
    piece = ParamSlice(param="0.weight", dim=1, index=torch.arange(4)[:, None])
    path = eliminated_losses(model, {"x": [piece]}, [(x, y)], precision="fp64")["x"]
    dense, weight, bias = model(x), model[0].weight.clone(), model[0].bias.clone()
    slope = (dense.softmax(1) - F.one_hot(y, classes)) / len(x)
    for count in range(1, 5):
        new, shift = refit(model[0], x, path.order[:count].tolist())
        model[0].weight.copy_(new)
        model[0].bias.add_(shift)
        change = model(x) - dense
        highest = dense.topk(classes if classes <= COLUMNS else LIKELIEST).indices
        mean = (dense.gather(1, highest).softmax(1) * change.gather(1, highest)).sum(1, keepdim=True)
        change = mean.expand_as(dense).scatter(1, highest, change.gather(1, highest))
        rise = F.cross_entropy(dense + change, y) - F.cross_entropy(dense, y) - (slope * change).sum()
        torch.testing.assert_close(float(path.loss[count - 1]), float(rise), rtol=1e-8, atol=1e-12)
        model[0].weight.copy_(weight)
        model[0].bias.copy_(bias)


def test_transposed_convolutions_and_repeated_layers_are_not_refitted():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 3, 2, bias=False)
            self.head = nn.Linear(75, 1)

        def forward(self, x):
            return self.head(self.up(self.up(x)).flatten(1))

    torch.manual_seed(0)
    model = Twice().double().requires_grad_(False)
    x = torch.randn(10, 3, 3, 3, dtype=torch.float64)
    piece = ParamSlice(param="up.weight", dim=0, index=torch.arange(3)[:, None])
    path = eliminated_losses(model, {"x": [piece]}, [(x, model(x))], loss_fn=F.mse_loss, precision="fp64")["x"]
    first = int(path.order[0])
    gradient = torch.func.jacrev(lambda w: torch.func.functional_call(model, {"up.weight": w}, x))(model.up.weight)
    effect = (gradient[:, 0, first] * model.up.weight[first]).flatten(1).sum(1)
    torch.testing.assert_close(float(path.loss[0]), float(effect.square().mean()))


def test_losses_rise_for_units_of_several_readers_and_repeat_by_seed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(80, 4)).eval()  # fmt: skip
    batches = [(torch.randn(16, 3, 8, 8), torch.arange(16) % 4)] * 2
    slices = {
        "a": [ParamSlice(param="3.weight", dim=1, index=torch.arange(6)[:, None])],
        "b": [ParamSlice(param="6.weight", dim=1, index=torch.arange(80).view(5, 16))],
    }
    paths = eliminated_losses(model, slices, batches, seed=3)
    again = eliminated_losses(model, slices, batches, seed=3)
    for key, path in paths.items():
        assert torch.equal(path.loss, again[key].loss)
        assert float(path.loss[-1]) > float(path.loss[0]) >= 0


class Small(nn.Module):
    """Two convolutions at 16×16 and 8×8 positions, with a layer that reads each."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.down, self.head = nn.Conv2d(5, 6, 3, stride=2, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.inner(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.down(torch.relu(x))).mean((2, 3)))


def small_problem(samples=640, size=18):
    """A network in float64, its data, and what reads the units of its first two layers."""
    torch.manual_seed(0)
    model = Small().double().requires_grad_(False)
    model.head.weight *= 5
    x, y = torch.randn(samples, 2, size, size, dtype=torch.float64), torch.arange(samples) * 7 % 4
    slices = {
        "stem": [ParamSlice(param="inner.weight", dim=1, index=torch.arange(6)[:, None])],
        "inner": [ParamSlice(param="down.weight", dim=1, index=torch.arange(5)[:, None])],
    }
    return model, x, y, slices


def cut(x, y, sizes):
    """Batches of these sizes, over and over, and the last one with what is left."""
    batches, start = [], 0
    while start < len(x):
        size = sizes[len(batches) % len(sizes)]
        batches.append((x[start : start + size], y[start : start + size]))
        start += size
    return batches


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 3.0]), label_smoothing=0.1)


@pytest.mark.parametrize(
    ("loss_fn", "precision", "tolerance"),
    [
        (None, "fp64", 1e-10),
        pytest.param(WEIGHTED, "fp64", 1e-10, marks=pytest.mark.slow),
        pytest.param(None, "fp32", 1e-5, marks=pytest.mark.slow),
    ],
    ids=["plain", "weighted", "single"],
)
def test_batches_and_chunks_do_not_matter(loss_fn, precision, tolerance):
    """300 samples of 289 positions: more of both than are looked at."""
    model, x, y, slices = small_problem(samples=300, size=17)
    expected = eliminated_losses(model, slices, [(x, y)], loss_fn=loss_fn, precision=precision, seed=5)
    for sizes, chunk in (((300,), 7), ((300,), 300), ((128,), None), ((1, 50, 3, 7), None), ((33, 64), 5)):
        run = {"loss_fn": loss_fn, "precision": precision, "seed": 5, "options": TraceOptions(chunk_size=chunk)}
        other = eliminated_losses(model, slices, cut(x, y, sizes), **run)
        for key, path in expected.items():
            assert torch.equal(other[key].order, path.order), (sizes, chunk)
            torch.testing.assert_close(
                other[key].loss, path.loss, rtol=tolerance, atol=1e-15, msg=f"{key} by {sizes} and {chunk}"
            )


def test_twins_go_in_the_same_order_however_data_are_batched():
    """Either of two equal units can go first; rounding must not decide."""
    model, x, y, slices = small_problem(samples=96)
    for tensor in (model.stem.weight, model.stem.bias):
        tensor[3:] = tensor[:3]
    model.inner.weight[:, 3:] = model.inner.weight[:, :3]
    orders = {
        tuple(eliminated_losses(model, slices, cut(x, y, (size,)), precision="fp64")["stem"].order.tolist())
        for size in (96, 31, 7, 5)
    }
    assert len(orders) == 1


class Steps(nn.Module):
    """Linear maps over 400 positions, which lie before the samples or behind them."""

    def __init__(self, first):
        super().__init__()
        self.first, self.inner, self.outer, self.head = first, nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):  # (N, T, 3)
        x = x.transpose(0, 1) if self.first else x
        x = torch.relu(self.outer(torch.relu(self.inner(x)))).mean(0 if self.first else 1)
        return self.head(x)


def test_samples_are_found_along_any_axis():
    torch.manual_seed(0)
    plain, turned = Steps(False).double().requires_grad_(False), Steps(True).double().requires_grad_(False)
    turned.load_state_dict(plain.state_dict())
    x, y = torch.randn(24, 400, 3, dtype=torch.float64).cumsum(1) / 9, torch.arange(24) % 3
    slices = {"inner": [ParamSlice(param="outer.weight", dim=1, index=torch.arange(5)[:, None])]}
    one, other = (eliminated_losses(m, slices, [(x, y)], precision="fp64")["inner"] for m in (plain, turned))
    assert torch.equal(one.order, other.order)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=1e-15)


def test_ignored_samples_change_nothing():
    """Batches without any label that counts are skipped, and so is every single sample without one."""
    model, x, y, slices = small_problem(samples=60, size=8)
    more, ignored = torch.randn(30, 2, 8, 8, dtype=torch.float64), torch.full((30,), -100)
    joined, labels = torch.cat([x[40:], more[:5]]), torch.cat([y[40:], ignored[:5]])
    batches = [(x[:40], y[:40]), (more, ignored), (joined, labels)]
    expected = eliminated_losses(model, slices, [(x, y)], precision="fp64")
    actual = eliminated_losses(model, slices, batches, precision="fp64")
    for key, path in expected.items():
        assert torch.equal(actual[key].order, path.order)
        torch.testing.assert_close(actual[key].loss, path.loss, rtol=0.05, atol=0)  # 20 samples have other signs
    last = [(x, y), (more, ignored)]  # samples keep their place, and with it their signs
    for key, path in eliminated_losses(model, slices, last, precision="fp64").items():
        torch.testing.assert_close(path.loss, expected[key].loss, rtol=1e-10, atol=1e-15)
    with pytest.raises(DataError, match="must hold at least one label that counts, got only ignored ones"):
        eliminated_losses(model, slices, [(more, ignored)], precision="fp64")


def test_experts_are_measured_without_a_refit():
    """Each of two experts reads some samples: the loss is that of logits without the products of the removed inputs."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

        def forward(self, x):
            out = x.new_zeros(len(x), 3)
            for number, expert in enumerate(self.experts):
                rows = torch.where((x[:, 0] > 0) == bool(number))[0]
                out = out.index_add(0, rows, expert(x[rows]))
            return out

    torch.manual_seed(0)
    model = Experts().double().requires_grad_(False)
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.arange(40) % 3
    pieces = [ParamSlice(param=f"experts.{n}.weight", dim=1, index=torch.arange(4)[:, None]) for n in range(2)]
    path = eliminated_losses(model, {"x": pieces}, [(x[:17], y[:17]), (x[17:], y[17:])], precision="fp64")["x"]
    dense, chosen = model(x), (x[:, 0] > 0).long()
    weight = torch.stack([expert.weight for expert in model.experts])[chosen]  # (N, 3, 4)
    slope = (dense.softmax(1) - F.one_hot(y, 3)) / len(x)
    for count in range(1, 5):
        gone = path.order[:count]
        change = -torch.einsum("nok,nk->no", weight[:, :, gone], x[:, gone])
        rise = F.cross_entropy(dense + change, y) - F.cross_entropy(dense, y) - (slope * change).sum()
        torch.testing.assert_close(float(path.loss[count - 1]), float(rise), rtol=1e-8, atol=1e-12)
