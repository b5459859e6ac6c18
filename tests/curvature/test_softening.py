"""The temperature at which half of the samples count."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.curvature.softening import softened as softened_objective
from hessprune.objectives.choice import choose_objective
from hessprune.objectives.closed_form import SoftenedCrossEntropy
from hessprune.objectives.given import GivenLoss

SURE = torch.tensor([[9.0, 0, 0], [0, 8, 0], [0, 0, 7], [0, 1, 0.5]])
LABELS = torch.tensor([0, 1, 2, 1])
BATCHES = [(SURE[:1], LABELS[:1]), (SURE[1:], LABELS[1:])]


def softened(model, batches, loss_fn=None):
    """Return the loss and the temperature."""
    objective, temperature = softened_objective(model, batches, GivenLoss(loss_fn=loss_fn))
    return objective.loss_fn, temperature


def effective_share(logits, temperature):
    p = (logits / temperature).softmax(1)
    mass = (p * (1 - p)).sum(1)
    return float(mass.sum() ** 2 / mass.square().sum()) / len(mass)


def test_the_temperature_is_the_lowest_at_which_half_of_the_samples_count():
    loss, temperature = softened(nn.Identity(), BATCHES)
    assert isinstance(loss, SoftenedCrossEntropy)
    assert loss.temperature == temperature
    assert effective_share(SURE, 1) < 0.3
    assert effective_share(SURE, temperature) >= 0.5 > effective_share(SURE, temperature * 0.98)


def test_samples_in_doubt_need_no_softening():
    batches = [(SURE / 9, LABELS)]
    assert softened(nn.Identity(), batches) == (None, 1.0)
    assert softened(nn.Identity(), [(100 * SURE, LABELS)])[1] > 30


def test_what_the_loss_ignores_does_not_count():
    ignored = [(SURE, LABELS.index_fill(0, torch.tensor([3]), -100))]
    assert softened(nn.Identity(), ignored)[1] < 1.1 < softened(nn.Identity(), BATCHES)[1]  # three alike are left
    batches = [(SURE[:1], torch.tensor([-100])), *BATCHES]
    assert softened(nn.Identity(), batches)[1] == softened(nn.Identity(), BATCHES)[1]
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    loss, temperature = softened(nn.Identity(), BATCHES, weighted)
    assert (loss.label_smoothing, loss.weight.tolist()) == (0.1, [1.0, 2.0, 3.0])
    expected = weighted(SURE / temperature, LABELS)
    torch.testing.assert_close(loss(SURE, LABELS), expected)


def test_only_ignored_labels_are_refused():
    with pytest.raises(hp.errors.DataError, match="must hold at least one label that counts, got only ignored ones"):
        softened(nn.Identity(), [(SURE, torch.full((4,), -100))])


def test_other_losses_stay_as_they_are():
    squares = nn.MSELoss()
    assert softened(nn.Identity(), [(SURE, SURE)], squares) == (squares, 1.0)
    already = SoftenedCrossEntropy(nn.CrossEntropyLoss(), 2.0)
    assert softened(nn.Identity(), BATCHES, already) == (already, 1.0)


def test_the_dense_outputs_are_softened_as_labels_are():
    objective = choose_objective(nn.Identity(), [SURE])
    other, temperature = softened_objective(nn.Identity(), [SURE], objective)
    assert temperature == softened(nn.Identity(), BATCHES)[1]
    assert other.temperature == temperature


@pytest.mark.parametrize("compensated", [False, True])
def test_joint_is_softened_where_curvature_decides(compensated):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight *= 200
    x = torch.randn(40, 4)
    batches = [(x, model(x).argmax(1))]
    groups = hp.find_groups(model, x)

    def scores(**settings):
        return hp.saliency(model, groups, batches, hp.Joint(refit=compensated, **settings))

    temperature = softened(model, batches)[1]
    assert temperature > 1.5
    expected = scores(temperature=1 if compensated else temperature)
    torch.testing.assert_close(scores()[groups[0]], expected[groups[0]])
    assert scores().provenance["temperature"] == (1 if compensated else round(temperature, 4))
    assert not torch.allclose(scores(temperature=1)[groups[0]], scores(temperature=4)[groups[0]], rtol=0.1)
    with pytest.raises(hp.errors.ArgumentError, match="`temperature`"):
        scores(temperature=0)
