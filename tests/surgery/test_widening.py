"""Widened models: equal outputs, new units that learn, and a way through files."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import NumericalError
from hessprune.lab.models.registry import build_model
from tests.cases import AWKWARD, image, make
from tests.networks.network import Network

LARGE = ("preresnet29", "resnet32", "resnet56", "wrn28-8", "vgg16-bn", "vgg19-bn", "densenet40")
NETWORKS = ("resnet20", "resnet20-b", "mobilenet-tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE))
"""Those of the papers, and two more."""


def noisy(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and weights that differ from channel to channel."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.weight.data.uniform_(0.5, 1.5)
    return model.double().eval()


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / a.detach().abs().max())


@pytest.mark.parametrize("start", ["split", "fresh"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_every_group_grows(name: str, start: str) -> None:
    torch.manual_seed(0)
    model, x = noisy(build_model(name, num_classes=10)), torch.randn(2, 3, 32, 32).double()
    groups = hp.find_groups(model, x)
    wider = hp.widen(model, x, {group.name: group.num_units + 2 for group in groups}, start=start)
    assert apart(model(x), wider.model(x)) < 1e-10
    found = {group.name: group.num_units for group in hp.find_groups(wider.model, x)}
    assert found == {group.name: group.num_units + 2 for group in groups} == wider.plan.widths
    assert wider.cost_after.macs > wider.cost_before.macs


@pytest.mark.parametrize("case", AWKWARD, ids=lambda case: case.__name__)
def test_awkward_networks_widen(case: type[nn.Module]) -> None:
    model, x = make(case).double().eval(), image().double()
    groups = hp.find_groups(model, x, compare=True)
    wider = hp.widen(model, x, {group.name: group.num_units + 1 for group in groups})
    assert wider.plan.num_added == len(groups)


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_widen(seed: int) -> None:
    torch.manual_seed(seed)
    model = Network(random.Random(seed), blocks=2)
    x = model.inputs()
    try:
        groups = hp.find_groups(model, x, compare=True)
    except hp.errors.UnsupportedModelError:
        return
    wider = hp.widen(model, x, {group.name: group.num_units + 1 + seed % 2 for group in groups}, seed=seed)
    assert wider.plan.num_added == (1 + seed % 2) * len(groups)


def test_heads_widen_as_neurons_do() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, x = nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 2)).double().eval(), torch.randn(2, 7, 5).double()
    wider = hp.widen(model, x, {group.name: group.num_units + 1 for group in hp.find_groups(model, x)})
    assert wider.model[1].self_attn.num_heads == 5
    assert wider.model[1].linear1.out_features == 33
    assert apart(model(x), wider.model(x)) < 1e-10


@pytest.mark.parametrize("start", ["split", "fresh"])
def test_new_units_learn(start: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    wider = hp.widen(model, x, {"0": 12}, start=start)
    net, added = wider.model, wider.plan.added["0"]
    before = F.cross_entropy(net(x), y).item()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert F.cross_entropy(net(x), y).item() < before - 0.02
    rows = net[0].weight.detach()
    assert float(torch.pdist(rows).min()) > 1e-2  # copies have parted, under an optimizer that ignores scale
    assert float(net[2].weight.detach()[:, list(added)].abs().min()) > 1e-4


@pytest.mark.parametrize("start", ["split", "fresh"])
@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_steps_lower_the_loss_of_the_new_units_alone(name: str, start: str) -> None:
    """The weights of all other units are put back after each step."""
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    model = build_model(name, num_classes=10)
    wider = hp.widen(model, x, {group.name: group.num_units + 2 for group in hp.find_groups(model, x)}, start=start)
    net = wider.model.eval()
    old = {name: tensor.clone() for name, tensor in net.named_parameters()}
    new = masks_of_the_new(wider)
    before = F.cross_entropy(net(x), y).item()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, tensor in net.named_parameters():
                tensor.copy_(torch.where(new[name], tensor, old[name]))
    assert F.cross_entropy(net(x), y).item() < before - 1e-3


def masks_of_the_new(wider: Any) -> dict[str, Tensor]:
    """Return for each parameter where it belongs to new units."""
    masks = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in wider.model.named_parameters()}
    for group in wider.plan.groups:
        for piece in group.slices:
            if piece.param in masks:
                places = [place for unit in wider.plan.added.get(group.name, ()) for place in piece.index[unit]]
                masks[piece.param].index_fill_(piece.dim, torch.tensor(places, dtype=torch.int64), True)
    return masks


def test_units_without_weights_are_no_parents() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(64, 6)
    before = hp.widen(model, x, {"0": 12}).plan
    nn.init.zeros_(model[2].weight[:, 3])
    assert hp.widen(model, x, {"0": 12}).plan.parents == before.parents
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, -5
    wider = hp.widen(model, x, {"0": 12})
    F.cross_entropy(wider.model(x), torch.arange(64) % 3).backward()
    gradients = wider.model[0].weight.grad.abs().amax(1)
    assert bool((gradients[list(wider.plan.added["0"])] > 0).all())
    assert int((gradients == 0).sum()) == 1  # the old one
    nn.init.zeros_(model[0].weight)
    assert hp.widen(model, x, {"0": 12}).plan.parents == before.parents


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_copies_part_where_all_weights_that_read_them_are_equal(value: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(64, 6)
    nn.init.constant_(model[2].weight, value)
    net = hp.widen(model, x, {"0": 8}).model
    assert torch.allclose(net(x), model(x), atol=1e-5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(64) % 3).backward()
        optimizer.step()
    assert float(torch.pdist(net[0].weight.detach()).min()) > 1e-3


def test_a_widened_model_goes_through_a_folder(tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    factory = lambda: build_model("resnet20", num_classes=10)  # noqa: E731
    wider = hp.widen(factory().eval(), x, {"layer1.0.conv1": 20, "conv1": 18})
    again = hp.load(wider.save(tmp_path), factory)
    assert torch.equal(again(x), wider.model.eval()(x))


def test_prunings_and_widenings_compose_and_are_saved(tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    factory = lambda: build_model("resnet20", num_classes=10)  # noqa: E731
    dense = factory().eval()
    smaller = hp.prune(dense, x, [x], budget=hp.Budget(macs=0.6), method="magnitude", compensate=False)
    wider = hp.widen(smaller.model, x, {"layer1.0.conv1": 24})
    again = hp.prune(wider.model, x, [x], budget=hp.Budget(macs=0.9), method="magnitude", compensate=False)
    steps = smaller.plan.then(wider.plan).then(again.plan)
    assert steps.cost_before == smaller.cost_before
    assert steps.cost_after == again.cost_after
    model = hp.load(hp.save(again.model, steps, tmp_path), factory)
    assert torch.equal(model(x), again.model.eval()(x))
    with pytest.raises(hp.errors.ArgumentError, match=r"that this widening gives.*model that hp.widen returned"):
        wider.plan.then(smaller.plan)
    with pytest.raises(hp.errors.ArgumentError, match=r"that this chain gives.*for the model that hp.widen returned"):
        smaller.plan.then(wider.plan).then(wider.plan)
    with pytest.raises(hp.errors.ArgumentError, match=r"that this chain gives.*for hp.apply_plan\(model, plan\)"):
        steps.then(wider.plan)


def test_widths_go_by_any_layer_of_a_group() -> None:
    torch.manual_seed(0)
    model, x = build_model("resnet20", num_classes=10).eval(), torch.randn(1, 3, 32, 32)
    stream = next(group for group in hp.find_groups(model, x) if group.name == "conv1")
    assert hp.widen(model, x, {"layer1.2.conv2": stream.num_units + 4}).plan.widths == {"conv1": stream.num_units + 4}


WRONG = {
    "nothing": ({}, "`widths` must be numbers of units"),
    "an unknown group": ({"9": 4}, "must name groups of the model, got '9'"),
    "fewer units": ({"0": 2}, "must be an integer of at least 4|at least 4"),
    "two widths for one group": ({"0": 6, "1": 7}, "agree on group"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_widths_are_refused(name: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
            setattr(self, "0", self.a)
            setattr(self, "1", self.b)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(getattr(self, "0")(x) + getattr(self, "1")(x))

    widths, message = WRONG[name]
    model = Sum()
    if name in ("fewer units", "two widths for one group"):
        named = [group.name for group in hp.find_groups(model, torch.zeros(1, 3))]
        widths = {named[0]: 2} if name == "fewer units" else {"a": 6, "b": 7}
    with pytest.raises(hp.errors.ArgumentError, match=message):
        hp.widen(model, torch.zeros(1, 3), widths)


def test_a_damaged_widening_is_one_line(tmp_path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    text = hp.widen(model, x, {"0": 10}).plan.to_json()
    with pytest.raises(hp.errors.CheckpointError, match="the plan or widening must"):
        hp.Widening.from_json("{}")
    for damaged in (
        text[:200],
        '{"a"',
        text.replace('"added"', '"addde"'),
        text.replace('"parents": {\n  "0"', '"parents": {\n  "1"'),
    ):
        with pytest.raises(hp.errors.CheckpointError, match="the plan or widening must be complete JSON"):
            hp.Widening.from_json(damaged)


def test_a_compiled_model_of_the_factory_takes_a_widening(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    x = torch.randn(4, 6)
    wider = hp.widen(factory(), x, {"0": 12})
    hp.save(wider.model, wider.plan, tmp_path)
    again = hp.load(tmp_path, lambda: torch.compile(factory(), backend="eager"))
    torch.testing.assert_close(again(x), wider.model(x), rtol=0, atol=0)


def test_a_model_without_numbers_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to("meta")
    with pytest.raises(NumericalError, match="on the meta device"):
        hp.widen(net, torch.zeros(1, 4), {"0": 12})


def test_weights_that_are_not_finite_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"0\.weight"):
        hp.widen(net, torch.zeros(1, 4), {"0": 12})


def test_a_result_in_the_place_of_its_plan_is_refused(tmp_path) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 4)
    smaller = hp.prune(net, x[:1], [x], budget=hp.Budget(macs=0.5), method="magnitude")
    wider = hp.widen(smaller.model, x[:1], {"0": 6})
    with pytest.raises(hp.errors.ArgumentError, match=r"Pass `plan` of the result"):
        smaller.plan.then(wider)
    with pytest.raises(hp.errors.ArgumentError, match=r"Pass result\.plan"):
        hp.save(smaller.model, smaller, tmp_path)
