import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.quiet import quiet
from tests.quantize.nets import batches, images, network, operators

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")

from hessprune.quantize import sensitivity
from hessprune.quantize.choice import least
from hessprune.quantize.graph import uses


def spoilt() -> nn.Sequential:
    """Three convolutions; the second has huge weights for an input that is always zero, which leave it no grid."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(800, 4),
    )
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, 0
        model[2].weight[:, 0] *= 1000
        model[7].weight *= 10  # logits that mean something
    return model.eval()


def labelled(model) -> list:
    with torch.no_grad():
        return [(inputs, model(inputs).argmax(1)) for inputs, _ in batches(128)]


def test_the_spoilt_layer_is_found_and_kept_and_no_other():
    model = spoilt()
    data = labelled(model)
    measured = hp.quantization_sensitivity(model, images(2), data, method="measured")
    assert next(iter(measured)) == "2"
    for method in ("curvature", "trace"):
        found = hp.quantization_sensitivity(model, images(2), data, method=method)
        assert next(iter(found)) == "2"
        assert found["2"].weights > 20 * max(layer.weights for name, layer in found.items() if name != "2")
    everything = hp.calibrate(hp.prepare_qat(model, images(2)), data)
    assert hp.evaluate(everything, data).accuracy < 0.9
    kept = hp.choose_fp32_layers(model, images(2), data, tolerance=2.0)
    assert list(kept) == ["2"]
    assert kept["2"].startswith("sensitivity ")
    assert kept["2"].endswith("% of the loss of rounding")
    prepared = hp.prepare_qat(model, images(2), keep_fp32=kept)
    assert prepared.fp32_layers == kept
    assert hp.evaluate(hp.calibrate(prepared, data), data).accuracy >= 0.98
    assert not hp.choose_fp32_layers(model, images(2), data, tolerance=100)


def test_the_estimate_is_what_is_measured_on_a_healthy_network():
    model, data = network("resnet"), batches(128)
    found, measured = (
        hp.quantization_sensitivity(model, images(2), data, method=method) for method in ("curvature", "measured")
    )
    assert set(found) == set(measured)
    assert list(found) == sorted(found, key=lambda name: -found[name].total)
    for name, layer in found.items():
        assert layer.weights == pytest.approx(measured[name].weights, rel=0.3)
    assert sum(layer.total for layer in found.values()) == pytest.approx(
        sum(layer.total for layer in measured.values()), rel=0.25
    )
    inner = found["layer1.0.conv2"]
    assert inner.activations > 0  # what lies between the two convolutions of a block


def test_the_probes_give_the_quadratic_form(monkeypatch):
    """One linear layer: `½ E[Δᵀ (diag(p) − p pᵀ) Δ]`, with Δ the change of the logits."""
    monkeypatch.setattr(sensitivity, "NUM_PROBES", 2000)
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(32, 6)
    data = [(x[:20], None), (x[20:], None)]
    found = hp.quantization_sensitivity(model, x, data)[""]
    calibrated = hp.calibrate(hp.prepare_qat(model, x), data)
    quantizer = calibrated.get_submodule(uses(calibrated)[0].values[0].target)
    with torch.no_grad():
        p, weight = model(x).softmax(1), calibrated.get_parameter("weight")
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        changes = x @ (uses(calibrated)[0].weight(weight) - model.weight).T, (quantizer(x) - x) @ model.weight.T
        expected = [float(torch.einsum("na,nab,nb->n", d, hessian, d).mean() / 2) for d in changes]
    assert [found.weights, found.activations] == pytest.approx(expected, rel=0.05)


def test_the_trace_form_is_hawqs(monkeypatch):
    monkeypatch.setattr(sensitivity, "NUM_PROBES", 500)
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(32, 6)
    found = hp.quantization_sensitivity(model, x, [(x, torch.arange(32) % 4)], method="trace")[""]
    with torch.no_grad():
        p, step = model(x).softmax(1), model.weight.abs().amax(1, keepdim=True) / 64
        change = (model.weight / step).round() * step - model.weight
        traces = (p * (1 - p)).T @ x.square().sum(1) / len(x)
        expected = float((traces * change.square().mean(1)).sum() / 2)
    assert found.weights == pytest.approx(expected, rel=0.05)


def test_values_of_additions_count_for_no_layer_and_the_model_is_untouched():
    model = network("resnet")
    prepared = hp.prepare_qat(model, images(2))
    by_layer = {use.layer: len(use.values) for use in uses(prepared)}
    assert by_layer["conv1"] == 1  # the images; its output is added to later
    assert by_layer["layer1.0.conv1"] == by_layer["layer1.0.conv2"] == 1
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hp.quantization_sensitivity(model, images(2), batches())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(inputs.requires_grad for inputs, _ in batches())


def test_the_scheme_is_that_of_the_model_to_come():
    model, data = network("vgg"), batches()
    seven, eight = (
        hp.quantization_sensitivity(model, images(2), data, scheme=hp.Scheme(weight_bits=bits)) for bits in (7, 8)
    )
    ratio = sum(layer.weights for layer in seven.values()) / sum(layer.weights for layer in eight.values())
    assert 2.5 < ratio < 6  # four times the squared step


def test_the_search_finds_the_least_number_or_none():
    assert [least(20, lambda number: number >= wanted) for wanted in (1, 2, 7, 20)] == [1, 2, 7, 20]  # noqa: B023
    assert least(20, lambda _: False) is None
    assert least(0, lambda _: True) is None


def test_wrong_use_is_named():
    model, data = network("vgg"), batches()
    with pytest.raises(ArgumentError, match="`method` must be one of 'curvature', 'measured', 'trace', got 'hawq'"):
        hp.quantization_sensitivity(model, images(2), data, method="hawq")
    with pytest.raises(ArgumentError, match="must be a float model, got one that is quantised already"):
        hp.quantization_sensitivity(hp.prepare_qat(model, images(2)), images(2), data)
    with pytest.raises(ArgumentError, match="`tolerance` must be a number from 0 to 100, got -1"):
        hp.choose_fp32_layers(model, images(2), data, tolerance=-1)
    with pytest.raises(DataError, match="`validation` must hold labels of classes, got NoneType: accuracy decides"):
        hp.choose_fp32_layers(model, images(2), data, validation=[(images(2), None)])
    one = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    with torch.no_grad():
        one[1].weight.mul_(1e-3)
        one[1].weight[:, 0] = 100
        seen = [inputs * (torch.arange(16) > 0) for inputs, _ in data]  # a first column that is always zero
        lost = [(inputs, one(inputs).argmax(1)) for inputs in seen]
    with pytest.raises(ArgumentError, match=r"`tolerance` must be within reach, got 0\.1 where INT8 loses .* Raise it"):
        hp.choose_fp32_layers(one, images(2), lost, tolerance=0.1)
    with pytest.raises(ArgumentError, match=r"`keep_fp32` must be a list of patterns, got 'auto'.*choose_fp32_layers"):
        hp.prepare_qat(model, images(2), keep_fp32="auto")


@pytest.mark.slow
def test_an_implant_becomes_integers_too(tmp_path):
    model = network("resnet")
    result = hp.prune(model, images(2), batches(), budget=hp.Budget(macs=0.6), method="magnitude", implant=0.5)
    assert any(result.plan.implanted.values())
    int8 = hp.convert_qat(hp.calibrate(hp.prepare_qat(result.model, images(2)), batches()))
    assert not int8.fp32_layers
    found = operators(hp.export_onnx(int8, images(2), tmp_path / "int8.onnx"))
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "Mul"} & set(found), found
    with torch.no_grad():
        expected = result.model(images(16, 9))
        assert float((int8(images(16, 9)) - expected).abs().max()) < 0.15 * float(expected.abs().max())


def test_a_single_output_is_a_number():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)).eval(), torch.randn(64, 6)
    estimated, measured = (
        hp.quantization_sensitivity(model, x, [(x, None)], method=method) for method in ("curvature", "measured")
    )
    for name, layer in measured.items():
        assert layer.weights > 0
        assert 0.5 < estimated[name].weights / layer.weights < 2
    with pytest.raises(DataError, match="must hold labels of classes, got float32"):
        hp.choose_fp32_layers(model, x, [(x, torch.randn(64, 1))], tolerance=1.0)


class Pooled(nn.Module):
    """Sequences with a mask, of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x, mask):
        return self.head((torch.relu(self.up(x)) * mask[..., None]).sum(1))


def sequences(model):
    """Return batches of two lengths with labels inside."""
    found = []
    for length in (9, 4):
        inputs = {"x": torch.randn(16, length, 4), "mask": torch.ones(16, length)}
        found.append(inputs | {"labels": model(**inputs).argmax(1)})
    return found


@pytest.mark.parametrize("method", ["curvature", "trace", "measured"])
def test_sequences_of_any_length_in_any_form_have_sensitivities(method):
    torch.manual_seed(0)
    model = Pooled()
    example = {"x": torch.randn(2, 6, 4), "mask": torch.ones(2, 6)}
    found = hp.quantization_sensitivity(model, example, sequences(model), method=method, dynamic_length=True)
    assert found.keys() == {"up", "head"}
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert hp.quantization_sensitivity(net, torch.zeros(1, 4), [torch.randn(8, 4)], method=method).keys() == {"0", "2"}


def test_the_layers_of_sequences_are_chosen_with_labels_inside():
    torch.manual_seed(0)
    model = Pooled()
    example = {"x": torch.randn(2, 6, 4), "mask": torch.ones(2, 6)}
    assert hp.choose_fp32_layers(model, example, sequences(model), tolerance=20, dynamic_length=True) == {}
