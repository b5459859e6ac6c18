import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError
from hessprune.foundation.quiet import quiet

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")

from hessprune.quantize.ranges import (
    MOMENTUM,
    SHRINKS,
    ActivationQuantizer,
    Extremes,
    Histogram,
    WeightQuantizer,
    activation_spec,
    weight_specs,
)


def _activation(kind="asymmetric") -> ActivationQuantizer:
    spec = activation_spec(kind)
    limits = {name: getattr(spec, name) for name in ("dtype", "quant_min", "quant_max", "qscheme")}
    return ActivationQuantizer(**limits).eval()


def _weight(axis: int, bits: int = 7) -> WeightQuantizer:
    spec = weight_specs(bits)[axis]
    limits = {name: getattr(spec, name) for name in ("dtype", "quant_min", "quant_max", "qscheme")}
    return WeightQuantizer(ch_axis=axis, **limits)


@pytest.mark.parametrize(("bits", "steps"), [(7, 64), (8, 127)])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_lie_on_a_grid_per_channel_and_let_gradients_through(bits, steps, axis):
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rounded = _weight(axis, bits)(weight)
    rows, ours = weight.transpose(0, axis).flatten(1), rounded.transpose(0, axis).flatten(1)
    step = rows.abs().amax(1, keepdim=True) / steps
    assert torch.allclose(ours, torch.round(rows / step) * step, atol=1e-6)
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_no_pair_of_products_overflows_sixteen_bits():
    assert 2 * 255 * weight_specs(7)[0].quant_max < 2**15 <= 2 * 255 * weight_specs(8)[0].quant_max


@pytest.mark.parametrize(("kind", "low", "high"), [("asymmetric", -1.0, 3.0), ("symmetric", -3.0, 3.0)])
def test_activations_are_rounded_to_255_steps_and_zero_stays_zero(kind, low, high):
    quantizer = _activation(kind)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(3.0))
    x = torch.linspace(-5, 5, 1001, requires_grad=True)
    found, values = quantizer(x), x.detach()
    scale, zero = quantizer.calculate_qparams()
    steps = quantizer.quant_max - quantizer.quant_min
    assert torch.allclose(scale, torch.tensor((high - low) / steps))
    assert not bool(found[500])
    assert float((found.detach() - values.clamp(low, high)).abs().max()) <= 0.51 * float(scale)
    assert int(zero) == quantizer.quant_min - round(low / float(scale))
    found.sum().backward()
    inside = (x > low + scale) & (x < high - scale)
    assert bool((x.grad[inside] == 1).all())
    assert not bool(x.grad[(x < low - scale) | (x > high + scale)].any())


def test_a_range_of_positive_values_starts_at_zero():
    quantizer = _activation()
    quantizer.set_range(torch.tensor(2.0), torch.tensor(5.0))
    assert [float(value) for value in quantizer.calculate_qparams()] == pytest.approx([5 / 255, 0])


def test_ranges_follow_training_until_they_are_frozen():
    quantizer = _activation().train()
    quantizer(torch.tensor([-1.0, 1.0]))
    quantizer(torch.tensor([-2.0, 3.0]))
    assert [float(quantizer.low), float(quantizer.high)] == pytest.approx([-1 - MOMENTUM, 1 + 2 * MOMENTUM])
    quantizer.eval()(torch.tensor([-9.0, 9.0]))
    quantizer.train().disable_observer()
    quantizer(torch.tensor([-9.0, 9.0]))
    assert [float(quantizer.low), float(quantizer.high)] == pytest.approx([-1 - MOMENTUM, 1 + 2 * MOMENTUM])
    other = _activation()
    other.load_state_dict(quantizer.state_dict())
    assert not bool(other.observer_enabled)


def test_values_that_are_always_zero_are_calibrated_and_do_not_shrink_a_range():
    quantizer = _activation().train()
    quantizer(torch.zeros(3))
    assert quantizer.is_calibrated
    assert not bool(quantizer.eval()(torch.zeros(3)).any())
    for _ in range(3):
        quantizer.train()(torch.zeros(3))
    assert [float(quantizer.low), float(quantizer.high)] == [0, 1]
    constant = _activation().train()
    assert float(constant(torch.full((3,), 5.0))[0]) == pytest.approx(5)
    assert constant.is_calibrated


class Recurrent(nn.Module):
    """Starts from zeros, and ends in a layer that reads zeros alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.dead, self.last = (nn.Linear(*sizes) for sizes in [(5, 8), (8, 8), (8, 8), (8, 3)])
        nn.init.constant_(self.dead.bias, -100.0)

    def forward(self, x):
        h = torch.zeros_like(self.first(x[:, 0]))
        for step in range(x.shape[1]):
            h = torch.tanh(self.first(x[:, step]) + self.again(h))
        return self.last(h) + self.last(self.dead(h).relu())


@pytest.mark.parametrize("method", ["mse", "minmax"])
@pytest.mark.parametrize("rounding", ["second-order", "nearest"])
def test_a_state_that_starts_at_zero_is_quantised(method, rounding, tmp_path):
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(32, 4, 5)
    int8 = hp.convert_qat(hp.calibrate(hp.prepare_qat(model, x), [x], method=method, rounding=rounding))
    assert hp.export_onnx(int8, x, tmp_path / "int8.onnx").exists()
    expected = model(x).detach()
    assert float((int8(x) - expected).abs().max() / expected.abs().max()) < 0.03


def test_values_without_a_range_are_refused():
    with pytest.raises(ArgumentError, match=r"must be calibrated before the model is run.*hp.calibrate"):
        _activation()(torch.ones(1))


def test_the_best_range_cuts_outliers_that_cost_more_than_they_are_worth():
    quantizer, x = _activation(), torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    x[0] = 20.0
    extremes = Extremes()
    for part in x.split(250_000):
        extremes(part)
    assert [float(extremes.low), float(extremes.high)] == [float(x.min()), 20.0]
    histogram = Histogram(extremes)
    histogram(x)
    assert int(histogram.counts.sum()) == len(x)
    low, high = histogram.best_range(quantizer)
    tried = torch.stack([x.min() * SHRINKS, x.max() * SHRINKS], 1)
    errors = [float((quantizer.rounded(x, *pair) - x).square().mean()) for pair in tried]
    found = float((quantizer.rounded(x, low, high) - x).square().mean())
    assert found <= 1.02 * min(errors) < 0.7 * errors[0]
    assert float(high) < 10
