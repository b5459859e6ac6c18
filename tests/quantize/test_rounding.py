import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.foundation.quiet import quiet
from tests.quantize.nets import batches, images, network

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")

from hessprune.quantize import rounding
from hessprune.quantize.graph import uses
from hessprune.quantize.rewrite import tensor_of


def oracle(column, gram, scale, limit):
    """Round one output's weights; before each step, solve anew for the inputs that are left."""
    damped = gram + rounding.DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight, result, left = column.clone(), torch.zeros_like(column), gram.diagonal().argsort(descending=True)
    largest = int(column.abs().argmax())
    while len(left):
        k, inverse = left[0], torch.linalg.inv(damped[left][:, left])
        integer = (weight[k] / scale).round().clamp(-limit, limit)
        result[k] = scale * (column[k].sign() * limit if int(k) == largest else integer)
        weight[left] -= (weight[k] - result[k]) * inverse[:, 0] / inverse[0, 0]
        left = left[1:]
    return result


def regression(groups=2, inputs=9, outputs=3):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(groups, 200, inputs, generator=generator, dtype=torch.float64) @ mix
    columns = torch.randn(groups, inputs, outputs, generator=generator, dtype=torch.float64)
    return columns, x.mT @ x, columns.abs().amax(1) / 7


def test_rounding_follows_its_oracle_and_beats_the_nearest():
    columns, gram, scale = regression()
    rounded = rounding.round_columns(columns, gram, scale, limit=7)
    expected = torch.stack([
        torch.stack([oracle(w, one, s, 7) for w, s in zip(block.T, steps, strict=True)], 1)
        for block, one, steps in zip(columns, gram, scale, strict=True)
    ])
    assert torch.allclose(rounded, expected, atol=1e-10)
    integers = rounded / scale[:, None]
    assert torch.allclose(integers, integers.round(), atol=1e-9)
    assert torch.allclose(rounded.abs().amax(1) / 7, scale)  # the grid can be read off the weights
    nearest = (columns / scale[:, None]).round() * scale[:, None]
    errors = [float(((w - columns) * (gram @ (w - columns))).sum()) for w in (rounded, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_white_inputs_leave_the_nearest_and_dead_ones_do_no_harm():
    columns, gram, scale = regression()
    nearest = (columns / scale[:, None]).round() * scale[:, None]
    white = torch.eye(9, dtype=torch.float64).expand_as(gram)
    assert torch.allclose(rounding.round_columns(columns, white, scale, limit=7), nearest)
    assert torch.allclose(rounding.round_columns(columns, 0 * gram, scale, limit=7), nearest)


@pytest.mark.parametrize("name", ["resnet", "preresnet"])
def test_outputs_stay_nearer_to_those_of_the_float_model(name):
    model, x = network(name), images(64, 7)
    prepared = hp.prepare_qat(model, images(2))
    nearest, second = (hp.calibrate(prepared, batches(), rounding=kind) for kind in ("nearest", "second-order"))
    with torch.no_grad():
        errors = [float((found(x) - model(x)).square().mean()) for found in (second, nearest)]
        assert errors[0] < 0.8 * errors[1]
        again = hp.calibrate(second, batches()).get_parameter("conv1.weight")  # on its grid already
        assert torch.allclose(again, second.get_parameter("conv1.weight"), atol=1e-6)
        assert float((hp.convert_qat(second)(x) - second(x)).abs().max()) < 0.05 * float(second(x).abs().max())
    assert not [module for module, _ in second.named_children() if module.startswith("_spy")]


def test_the_scales_of_weights_stay_and_the_gram_matrix_is_of_what_layers_read(monkeypatch):
    monkeypatch.setattr(rounding, "MAX_BYTES", 1)  # one weight a pass
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(300, 6)
    seen = []
    original = rounding.round_columns
    monkeypatch.setattr(
        rounding, "round_columns", lambda *args, **limit: seen.append(args[1]) or original(*args, **limit)
    )
    prepared = hp.prepare_qat(model, x)
    calibrated = hp.calibrate(prepared, [(x[:150], None), (x[150:], None)])
    quantizer = uses(calibrated)[0].values[0]
    rounded = calibrated.get_submodule(quantizer.target)(x)
    assert torch.allclose(seen[0][0], (rounded.T @ rounded).double(), rtol=1e-4)
    hidden = calibrated.get_submodule(uses(calibrated)[1].values[0].target)
    assert len(seen) == 2
    first = hp.calibrate(prepared, [(x, None)])
    assert torch.isfinite(hidden(torch.relu(first(x)))).all()
    for use, layer in zip(uses(calibrated), (model[0], model[2]), strict=True):
        weight = tensor_of(calibrated, use.node.args[1].args[0])
        use.weight(weight)
        assert torch.allclose(use.weight.scale, layer.weight.abs().amax(1) / 64)
        assert not torch.equal(weight, layer.weight)


def test_transposed_convolutions_go_to_the_nearest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 3))
    calibrated = hp.calibrate(hp.prepare_qat(model, images(2)), batches())
    assert torch.equal(calibrated.get_parameter("0.weight"), model[0].weight)
    assert not torch.equal(calibrated.get_parameter("2.weight"), model[2].weight)
