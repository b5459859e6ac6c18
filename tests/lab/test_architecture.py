import torch
from torch import nn

from hessprune.lab.architecture import architecture_of
from tests.cases import Plain, Residual, make


def test_an_architecture_is_more_than_its_weights():
    linear = nn.Linear(2, 2)
    kinds = [nn.Sequential(linear, nn.ReLU()), nn.Sequential(linear, nn.GELU()), make(Plain), make(Residual)]
    assert len({architecture_of(model) for model in kinds}) == 4
    assert architecture_of(make(Plain)) == architecture_of(make(Plain))


def test_models_without_a_source_file_have_an_architecture_too():
    scope: dict[str, type] = {"nn": nn}
    exec("class Odd(nn.Module):\n    pass", scope)
    assert len(architecture_of(scope["Odd"]())) == 64
    assert len(architecture_of(torch.fx.symbolic_trace(nn.ReLU()))) == 64
