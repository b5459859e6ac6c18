from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hessprune.errors import DataError, NumericalError
from hessprune.foundation import modules as _modules
from hessprune.foundation.misfits import dtype_remedy

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"float32 \(2, 1, 8, 8\), in module '0': .* to have 3 channels, but got 1"),
        (torch.zeros(2, 3, 9, 9), r"in module '2': mat1 and mat2 shapes cannot be multiplied"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.int64),
            r"got int64 .*weights are float32, the inputs int64: pass x.to\(torch.float32\), scaled",
        ),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"the inputs uint8: pass x.to\(torch.float32\), scaled"),
        ({"x": torch.zeros(1)}, r"`data` must fit the model, got \{'x': float32 \(1,\)\}"),
    ],
)
def test_predict_names_inputs_module_and_reason(inputs, message):
    with pytest.raises(DataError, match=message):
        _modules.predict(NET, inputs, "data")


@dataclass
class Batch:
    x: torch.Tensor


class Detached(nn.Module):
    def forward(self, x):
        return NET(x.detach())


def test_a_dataclass_for_a_model_of_tensors_is_named():
    for model in (NET, Detached()):
        with pytest.raises(DataError, match=r"got Batch.* yield a dict of arguments, vars\(batch\), or \(inputs, targ"):
            _modules.predict(model, Batch(torch.zeros(2, 3, 8, 8)))
    with pytest.raises(AttributeError):
        _modules.predict(Detached(), [1.0])


def test_predict_leaves_our_own_errors_alone():
    class Diverging(nn.Module):
        def forward(self, x):
            raise NumericalError("not finite")

    with pytest.raises(NumericalError, match="not finite"):
        _modules.predict(Diverging(), torch.zeros(1))


def test_logits_are_found_in_every_kind_of_output():
    class Output:
        logits = torch.ones(2)

    for output in (Output.logits, Output(), {"logits": Output.logits}, {"scores": Output.logits}, (Output.logits, 0)):
        assert _modules.logits_of(output) is Output.logits
    for nested in ({"boxes": [Output.logits, 0]}, ([Output.logits], 0), {"logits": (Output.logits,)}):
        assert _modules.logits_of(nested) is Output.logits


@pytest.mark.parametrize(
    ("weights", "inputs", "remedy"),
    [
        (
            torch.float16,
            torch.float32,
            r"The weights are float16, the inputs float32: call model.float\(\), or pass inputs",
        ),
        (torch.float32, torch.float64, r"call model.to\(torch.float64\), or pass inputs of dtype float32"),
    ],
)
def test_inputs_in_another_precision_come_with_the_call_that_helps(weights, inputs, remedy):
    net, x = nn.Linear(2, 2).to(weights), torch.zeros(1, 2, dtype=inputs)
    with pytest.raises(DataError, match=remedy):
        _modules.predict(net, x)
    eval(dtype_remedy(net, x).partition("call ")[2].partition(",")[0], {"model": net, "torch": torch})
    _modules.predict(net, x)


def test_a_borrowing_copy_writes_what_it_owns_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].bias = nn.Parameter(torch.ones(2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied = _modules.borrowing_copy(model, own={"0.weight"})
    assert copied[2].weight.data_ptr() == model[2].weight.data_ptr()
    with torch.no_grad():
        copied[0].weight.zero_()
        copied[1].running_mean.add_(1)
    copied.double()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not copied[0].weight.any()
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
