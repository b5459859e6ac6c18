"""`hp.prune`: one call, one smaller model, and one clear line where it cannot be."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError, DataError
from hessprune.lab.models.registry import build_model


def test_prune_returns_a_smaller_model_and_leaves_the_argument_alone():
    model = build_model("digits-resnet", num_classes=10, in_channels=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10)]
    result = hp.prune(model, batches[0][0][:1], batches, budget=hp.Budget(params=0.5), method="magnitude")
    assert result.cost_after.params <= result.cost_before.params / 2
    assert sum(parameter.numel() for parameter in result.model.parameters()) == result.cost_after.params
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(result.saliency) == {group.name for group in result.plan.groups}


def test_prune_implants_what_the_plan_decides():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():  # most of what the filters see is at their centre
        for layer in (net[0], net[2]):
            layer.weight[..., 1, 1] *= 6
    x = torch.randn(40, 1, 8, 8)
    batches, options = [(x, net(x).argmax(1))], {"budget": hp.Budget(macs=0.5), "method": "magnitude"}
    for implant in (0.5, hp.Implant(share=0.5, rank=2), hp.Implant(share=0.3, start="zero")):
        for step in (1.0, 0.3):
            result = hp.prune(net, x[:1], batches, implant=implant, ranking=hp.Ranking(step=step), **options)
            assert result.plan.num_implanted > 0
            assert hp.cost(result.model, x[:1]) == result.cost_after
            assert result.cost_after.macs <= 0.5 * result.cost_before.macs


def test_prune_refuses_what_it_cannot_do():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    batches = [(torch.zeros(2, 4), torch.zeros(2).long())]
    with pytest.raises(ArgumentError, match=r"`implant` must be 0 for this model, got 0.1: no unit has a plain conv"):
        hp.prune(net, x, batches, budget=hp.Budget(macs=0.5), implant=0.1)
    with pytest.raises(ArgumentError, match=r"`implant` must be a number from 0 to 1, got 1.5"):
        hp.prune(net, x, batches, budget=hp.Budget(macs=0.5), implant=1.5)
    with pytest.raises(ArgumentError, match=r"`method` must be one of"):
        hp.prune(net, x, batches, budget=hp.Budget(macs=0.5), method="happ")
    with pytest.raises(DataError, match="one-shot"):
        hp.prune(net, x, iter(batches), budget=hp.Budget(macs=0.5))


NET = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(20) % 2)]
HALF = hp.Budget(macs=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.5}, r"`budget` must be a Budget, got 0\.5\. Write budget=hp\.Budget\(macs=0\.5\)"),
        ({"budget": "0.5"}, "`budget` must be a Budget"),
        ({"budget": {"macs": 0.5}}, "`budget` must be a Budget"),
        ({"ranking": {"round_to": 8}}, "`ranking` must be of type Ranking"),
        ({"compensate": "yes"}, "`compensate` must be True or False"),
        ({"seed": 2**70}, "`seed` must be an integer from 0 to"),
        ({"seed": "x"}, "`seed` must be an integer"),
        ({"seed": 1, "method": hp.Random(seed=2)}, "`seed` must be that of `method`"),
        ({"ranking": hp.Ranking(min_kept_units=(("zz", 2),))}, "zz"),
        ({"ranking": hp.Ranking(ignore=("*",))}, "channels that can be removed"),
        ({"method": "joint:implant"}, "`method` must read NAME"),
    ],
)
def test_wrong_arguments_are_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(hp.HessPruneError, match=message):
        hp.prune(NET, X[:1], BATCHES, **{"budget": HALF} | arguments)


def test_layers_stay_by_module_type_or_pattern() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    for ignore in ((net[0],), ("0",)):
        result = hp.prune(net, X[:1], BATCHES, budget=hp.Budget(params=0.7), ranking=hp.Ranking(ignore=ignore))
        assert (result.model[0].out_features, result.model[2].out_features < 8) == (8, True)


def test_a_loss_reaches_saliency_refit_and_choice() -> None:
    """A regression is refitted under its own loss; cross-entropy of one output is always zero."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).eval()
    x = torch.randn(200, 4)
    y = net(x).detach()
    options = {"budget": hp.Budget(macs=0.5), "loss_fn": nn.MSELoss()}
    refitted = hp.prune(net, x[:1], [(x, y)], **options)
    plain = hp.prune(net, x[:1], [(x, y)], method=hp.Joint(refit=True), compensate=False, **options)
    assert refitted.plan.removed == plain.plan.removed
    loss, before = (float(nn.functional.mse_loss(each.model(x), y).detach()) for each in (refitted, plain))
    assert loss < 0.5 * before
    assert refitted.plan.provenance["loss"] == "MSELoss"


def test_a_shuffling_loader_leaves_the_random_state_alone() -> None:
    data = torch.utils.data.TensorDataset(*BATCHES[0])
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    state = torch.random.get_rng_state()
    first = hp.prune(NET, X[:1], loader, budget=HALF)
    assert torch.equal(state, torch.random.get_rng_state())
    assert hp.prune(NET, X[:1], loader, budget=HALF).plan == first.plan


def test_a_result_is_saved_and_printed_in_a_few_lines(tmp_path) -> None:
    result = hp.prune(NET, X[:1], BATCHES, budget=HALF)
    again = hp.load(
        result.save(tmp_path / "smaller"), lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    )
    assert torch.equal(again(X), result.model.eval()(X))
    assert len(str(result).splitlines()) <= 5
    assert replace(result, saliency=result.saliency) == result
