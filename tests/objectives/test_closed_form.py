"""The factor of the loss Hessian in the logits, for every loss."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprune.curvature import TraceOptions, block_traces, logit_factor
from hessprune.foundation.losses import loss_weight
from hessprune.objectives.closed_form import SoftenedCrossEntropy
from tests.curvature.nets import Residual, all_rows, batches_of, build, weights
from tests.oracles import block_traces_of, dense_hessian

EXACT = {"rtol": 1e-10, "atol": 1e-13}  # linear algebra in float64
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)


class Focal(nn.Module):
    """A loss nobody has heard of: convex in the logits, averaged over samples."""

    def forward(self, logits, targets):
        return (torch.logsumexp(1.5 * logits, 1) + 0.1 * (logits - targets[:, None]).square().sum(1)).mean()


def cast(value, dtype):
    """Return a loss, or real targets, in another precision."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(dtype)
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


def labels(n, *shape):
    return torch.randint(0, 3, (n, *shape), generator=torch.Generator().manual_seed(2))


def real(n, *shape):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Sharpened(nn.CrossEntropyLoss):
    """Looks like a known loss, and is another one."""

    def forward(self, input, target):
        return super().forward(2 * input, target)


LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), labels(4)),
    "function": (F.cross_entropy, labels(4)),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), labels(4)),
    "weighted": (nn.CrossEntropyLoss(weight=CLASS_WEIGHT), labels(4)),
    "smoothed and weighted": (nn.CrossEntropyLoss(weight=CLASS_WEIGHT, label_smoothing=0.3), labels(4)),
    "ignoring": (nn.CrossEntropyLoss(), labels(4).index_fill(0, torch.tensor([1]), -100)),
    "ignoring class 2": (nn.CrossEntropyLoss(ignore_index=2, weight=CLASS_WEIGHT, label_smoothing=0.1), labels(4)),
    "probabilities": (nn.CrossEntropyLoss(weight=CLASS_WEIGHT, label_smoothing=0.1), real(4, 3).softmax(1)),
    "squares": (nn.MSELoss(), real(4, 3)),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHT), real(4, 3).round()),
    "binary, weighted": (nn.BCEWithLogitsLoss(weight=CLASS_WEIGHT), real(4, 3)),
    "softened": (
        SoftenedCrossEntropy(nn.CrossEntropyLoss(weight=CLASS_WEIGHT, label_smoothing=0.1), 3.0),
        labels(4),
    ),
    "unknown": (Focal(), real(4)),
    "a subclass": (Sharpened(), labels(4)),
    "a plain function": (lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1), labels(4)),
}
DENSE = {
    "dense": (nn.CrossEntropyLoss(label_smoothing=0.1), labels(3, 2, 2)),
    "dense, weighted, ignoring": (
        nn.CrossEntropyLoss(weight=CLASS_WEIGHT),
        labels(3, 4).masked_fill(labels(3, 4) == 1, -100),
    ),
    "dense squares": (nn.MSELoss(), real(3, 3, 2)),
}


@pytest.mark.parametrize("name", {**LOSSES, **DENSE})
def test_factor_squares_to_the_hessian_in_the_logits(name):
    loss_fn, targets = {**LOSSES, **DENSE}[name]
    n = len(targets)
    shape = targets.shape if targets.is_floating_point() and targets.dim() > 1 else (n, 3, *targets.shape[1:])
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    factor = logit_factor(loss_fn, logits, targets)
    rows, size = torch.arange(n), logits[0].numel()
    columns = [factor.columns(rows, torch.full((n,), k)).reshape(n, size) for k in range(factor.mass.shape[1])]
    square = torch.einsum("nak,nbk->nab", *[torch.stack(columns, 2)] * 2)
    full = torch.autograd.functional.hessian(lambda f: loss_fn(f, targets) * factor.weight, logits)
    blocks = full.reshape(n, size, n, size)[rows, :, rows]
    torch.testing.assert_close(square, blocks, **EXACT)
    torch.testing.assert_close(factor.mass.sum(1), blocks.diagonal(dim1=1, dim2=2).sum(1), **EXACT)
    assert factor.weight == pytest.approx(loss_weight(loss_fn, targets))


@pytest.mark.parametrize("name", {**LOSSES, **DENSE})
def test_a_draw_mixes_the_columns(name):
    loss_fn, targets = {**LOSSES, **DENSE}[name]
    shape = (
        targets.shape if targets.is_floating_point() and targets.dim() > 1 else (len(targets), 3, *targets.shape[1:])
    )
    factor = logit_factor(loss_fn, torch.randn(shape, dtype=torch.float64), targets)
    rows = torch.tensor([2, 0])
    noise = torch.randn(2, factor.mass.shape[1], dtype=torch.float64)
    mixed = sum(
        noise[:, k].view(2, *[1] * (len(shape) - 1)) * factor.columns(rows, torch.full((2,), k))
        for k in range(noise.shape[1])
    )
    torch.testing.assert_close(factor.draw(rows, noise), mixed, **EXACT)


@pytest.mark.parametrize("name", LOSSES)
def test_exact_trace_for_every_loss(name):
    loss_fn, targets = LOSSES[name]
    model, inputs = build(Residual), torch.cat([x for x, _ in batches_of((2, 2))])
    batches = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    result = block_traces(model, all_rows(model), batches, loss_fn=loss_fn, precision="fp64")
    for weight in weights(model):
        hessian = dense_hessian(model, batches, weight, loss_fn)
        expected = block_traces_of(hessian, model.get_parameter(weight).shape, 0)
        torch.testing.assert_close(result.values[f"{weight}:0"], expected, **EXACT, msg=weight)


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_dense_targets(estimator):
    """Segmentation: every position has a label, some are ignored, and positions of one sample share their weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    targets = labels(3, 4, 4).masked_fill(labels(3, 4, 4) == 1, -100)
    batches = [(x[:3], targets) for x, _ in batches_of((3,))]
    options = TraceOptions(num_probes=200)
    result = block_traces(model, all_rows(model), batches, estimator=estimator, precision="fp64", options=options)
    for weight in weights(model):
        expected = block_traces_of(dense_hessian(model, batches, weight), model.get_parameter(weight).shape, 0)
        if estimator == "exact":
            torch.testing.assert_close(result.values[f"{weight}:0"], expected, **EXACT)
        else:
            error = (result.values[f"{weight}:0"] - expected).abs() / result.standard_error[f"{weight}:0"]
            assert float(error.max()) < 5


def test_losses_that_cannot_be_factored_are_refused():
    logits, targets = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="must average over samples, got reduction='sum'"):
        logit_factor(nn.CrossEntropyLoss(reduction="sum"), logits, targets)
    with pytest.raises(ValueError, match="must depend on the model's outputs"):
        logit_factor(lambda f, y: torch.ones((), requires_grad=True), logits, targets)
    with pytest.raises(ValueError, match="must return one number for a batch"):
        logit_factor(lambda f, y: f, logits, targets)
    with pytest.raises(ValueError, match=r"must be in \[0, 3\)"):
        logit_factor(None, logits, torch.tensor([0, 3]))


@pytest.mark.parametrize("settings", [{"reduction": "sum"}, {"ignore_index": 1}, {"weight": CLASS_WEIGHT}])
def test_any_function_of_a_batch_is_a_loss(settings):
    """Wrapped in a function it cannot be recognised: it counts as the batch loss that it is."""
    model, batches = build(Residual), batches_of((4,))

    def loss_fn(output, targets):
        return F.cross_entropy(output, targets, **settings)

    result = block_traces(model, all_rows(model), batches, loss_fn=loss_fn, precision="fp64")
    for weight in weights(model):
        hessian = torch.autograd.functional.hessian(
            lambda w, weight=weight: loss_fn(
                torch.func.functional_call(model, {weight: w}, batches[0][0]), batches[0][1]
            ),
            model.get_parameter(weight).detach(),
        )
        size = model.get_parameter(weight).numel()
        expected = block_traces_of(hessian.reshape(size, size), model.get_parameter(weight).shape, 0)
        torch.testing.assert_close(result.values[f"{weight}:0"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_the_loss_need_not_be_in_the_precision_of_the_work(name, precision):
    """Class weights and targets in single or double precision serve any model."""
    loss_fn, targets = LOSSES[name]
    model, inputs = build(Residual).float(), batches_of((4,))[0][0].float()
    run = {"estimator": "hutchinson", "precision": precision, "options": TraceOptions(num_probes=2)}
    results = []
    for dtype in (torch.float32, torch.float64):
        loss, batches = cast(loss_fn, dtype), [(inputs, cast(targets, dtype))]
        results.append(block_traces(model, all_rows(model), batches, loss_fn=loss, **run).values)
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("estimator", ["exact", "rademacher", "hutchinson"])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_ignored_samples_change_nothing(estimator, precision):
    """Wherever they lie: in a chunk or a batch of their own, or among others."""
    model, (x, y) = build(Residual), batches_of((6,))[0]
    ignored = torch.full((4,), -100)
    batches = [(x[:3], y[:3]), (x[:4], ignored), (x[3:], torch.cat([y[3:5], ignored[:1]]))]
    run = {"estimator": estimator, "precision": precision}
    options = TraceOptions(num_probes=2, chunk_size=2)
    result = block_traces(model, all_rows(model), batches, options=options, **run)
    assert result.weight == 5
    if estimator != "rademacher":  # its noise goes by the sample's position
        plain = block_traces(model, all_rows(model), [(x[:5], y[:5])], options=options, **run)
        for key, value in plain.values.items():
            torch.testing.assert_close(result.values[key], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="at least one label that counts"):
        block_traces(model, all_rows(model), [(x[:4], ignored)], options=options, **run)
