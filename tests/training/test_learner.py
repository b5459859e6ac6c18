import pytest
import torch
from torch import nn

from hessprune.errors import ArgumentError
from hessprune.training.config import FinetuneConfig
from hessprune.training.learner import Learner, check_precision, make_optimizer


def test_biases_and_normalisation_are_not_decayed():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.LayerNorm([2, 4, 4]),
        nn.GroupNorm(1, 2),
        nn.Flatten(),
        nn.Linear(32, 2),
    )
    decayed, kept = make_optimizer(model, FinetuneConfig(weight_decay=0.1)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[5].weight)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert len(kept["params"]) == 8


def test_frozen_parameters_stay():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    Learner(model, FinetuneConfig(), None).step(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), 0.1)
    assert torch.equal(model.bias, before)
    with pytest.raises(ArgumentError, match="requires_grad=True, got none"):
        make_optimizer(model.requires_grad_(False), FinetuneConfig())


def test_a_batch_without_labels_changes_nothing_unless_distilled():
    torch.manual_seed(0)
    model, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    before = model.weight.clone()
    inputs, unknown = torch.randn(4, 2), torch.full((4,), -100)
    assert Learner(model, FinetuneConfig(), None).step(inputs, unknown, 0.1) == 0.0
    assert torch.equal(model.weight, before)
    Learner(model, FinetuneConfig(distill_weight=1.0), teacher).step(inputs, unknown, 0.1)
    assert not torch.equal(model.weight, before)


def test_the_teacher_teaches_in_evaluation_mode_and_learns_nothing():
    teacher = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    learner = Learner(nn.Linear(2, 2), FinetuneConfig(distill_weight=0.5), teacher)
    learner.step(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), 0.1)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_plain_sgd_has_no_momentum():
    assert make_optimizer(nn.Linear(1, 1), FinetuneConfig(momentum=0.0)).param_groups[0]["nesterov"] is False


def test_precision_is_checked_against_the_device(monkeypatch):
    check_precision("bf16", torch.device("cpu"))
    with pytest.raises(ArgumentError, match="on a CPU, got 'fp16'"):
        check_precision("fp16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ArgumentError, match=r"on this device, got 'bf16'\. Use precision='fp16'"):
        check_precision("bf16", torch.device("cuda"))
