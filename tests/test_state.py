import pytest
import torch
from torch import nn

from hessprune._state import borrowed, evaluation_mode, seeded


def _interrupt(context):
    with context:
        raise RuntimeError("stop")


def test_a_seeded_block_draws_what_manual_seed_draws_and_restores_the_state():
    torch.manual_seed(3)
    expected, before = torch.rand(4), torch.get_rng_state()
    with seeded(3):
        drawn = torch.rand(4)
    assert torch.equal(drawn, expected)
    with pytest.raises(RuntimeError, match="stop"):
        _interrupt(seeded(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).train()
    model[0].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(RuntimeError, match="stop"):
        _interrupt(evaluation_mode(model))
    assert [module.training for module in model.modules()] == [True, False, True]


def test_a_borrowed_model_comes_back_with_gradients_and_flags():
    model = nn.Linear(2, 1).train()
    model.bias.requires_grad_(False)
    model.weight.grad = torch.ones(1, 2)
    with borrowed(model, requires_grad=True):
        assert model.weight.grad is None
        assert model.bias.requires_grad
        model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight.grad, torch.ones(1, 2))
    assert model.bias.grad is None
    assert not model.bias.requires_grad
    assert model.training
