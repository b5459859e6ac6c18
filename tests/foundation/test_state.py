import pytest
import torch
from torch import nn

from hessprune.foundation.state import evaluation_mode, seeded, set_training


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


@pytest.mark.parametrize("captured_in_training", [True, False])
def test_a_captured_graph_changes_its_mode_like_its_model(captured_in_training):
    model = nn.Sequential(nn.Linear(3, 64), nn.BatchNorm1d(64, eps=1e-2, momentum=0.3), nn.Dropout(0.5))
    inputs = torch.randn(8, 3)
    graph = torch.export.export(model.train(captured_in_training), (inputs,)).module()
    with seeded(0):
        before = graph(inputs)
    with evaluation_mode(graph), torch.no_grad():
        assert not any(module.training for module in graph.modules())
        evaluated = graph(inputs)
    with seeded(0):
        after = graph(inputs)
    assert bool((before == 0).any()) == bool((after == 0).any()) == captured_in_training
    set_training(graph, True)
    with seeded(0):
        assert bool((graph(inputs) == 0).any())
    set_training(graph, False)
    again = graph(inputs)
    assert not bool((evaluated == 0).any())
    model.load_state_dict(graph.state_dict())
    assert torch.equal(again, model.eval()(inputs))


def test_a_captured_graph_within_a_model_is_switched_too():
    graph = torch.export.export(nn.Dropout().train(), (torch.ones(100),)).module()
    model = nn.Sequential(graph)
    with evaluation_mode(model):
        assert bool((model(torch.ones(100)) == 1).all())
    assert bool((model(torch.ones(100)) == 0).any())
