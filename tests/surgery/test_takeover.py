"""Compensation by moments: least squares on dense inputs, with constants and variances put where they belong."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.curvature.reading_layers import input_moments
from hessprune.methods.gates import role_slices
from hessprune.surgery.takeover import take_over


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6))
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))


class Transposed(nn.Module):
    """A linear layer that stores its weight the other way round, as in GPT-2, behind a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.grouped = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 8, 1, groups=2)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.zeros(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grouped(self.first(x).relu()).relu().flatten(1)
        return torch.addmm(self.bias, y, self.weight)


CASES = {
    "convolutions": (convolutional, (3, 9, 9)),
    "linear layers": (linear, (5,)),
    "transposed and grouped": (Transposed, (4, 1)),
}


def pruned(name: str, share: float = 0.6):
    """Return the dense model, what a plan leaves, the plan, the moments and the data."""
    make, shape = CASES[name]
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(1))
    net = hp.reestimate_batchnorm(make(), [(x, None)]).eval()
    groups = hp.find_groups(net, x[:2])
    saliency = {group.name: torch.arange(1.0, group.num_units + 1) for group in groups}
    ranking = hp.Ranking(per_cost=False)
    plan = hp.make_plan(net, groups, saliency, hp.Budget(units=share), example_inputs=x[:2], ranking=ranking)
    moments = input_moments(net, role_slices(groups, "consumer"), [(x, torch.zeros(40, dtype=torch.int64))])
    return net, hp.apply_plan(net, plan), plan, moments, x


@pytest.mark.parametrize("name", CASES)
def test_each_layer_comes_nearest_to_what_it_made_of_all_inputs(name: str) -> None:
    net, smaller, plan, moments, x = pruned(name)
    before = smaller.state_dict()
    fitted = take_over(net, smaller, plan, moments, x[:1])
    assert all(torch.equal(value, smaller.state_dict()[key]) for key, value in before.items())
    with torch.no_grad():
        errors = [float((model(x) - net(x)).square().mean()) for model in (fitted, smaller)]
    assert errors[0] < 0.7 * errors[1]


def test_a_linear_layer_is_the_ridge_regression_on_its_inputs() -> None:
    net, smaller, plan, moments, x = pruned("linear layers")
    fitted = take_over(net, smaller, plan, moments, x[:1])
    with torch.no_grad():
        hidden, kept = net[:2](x).double(), list(plan.kept["0"])
        centred = hidden - hidden.mean(0)
        ridge = 1e-3 * centred.square().mean(0).mean() * len(x)
        inner = centred[:, kept].T @ centred[:, kept] + ridge * torch.eye(len(kept), dtype=torch.float64)
        gone = [unit for unit in range(8) if unit not in kept]
        weight = net[2].weight.double()
        cross = centred[:, kept].T @ centred[:, gone] @ weight[:, gone].T
        moved = weight[:, kept] + torch.linalg.solve(inner, cross).T
        rows = list(plan.kept["2"])
        shift = hidden.mean(0) @ weight.T - hidden.mean(0)[kept] @ moved.T
    # the moments are kept in single precision
    torch.testing.assert_close(fitted[2].weight.double(), moved[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted[2].bias.double(), net[2].bias.double()[rows] + shift[rows], rtol=1e-4, atol=1e-5)


def test_statistics_of_the_norm_behind_a_layer_are_those_of_its_new_outputs() -> None:
    net, smaller, plan, moments, x = pruned("convolutions")
    fitted = take_over(net, smaller, plan, moments, x[:1])
    rows = list(plan.kept["3"])
    with torch.no_grad():
        hidden = net[:3](x)[:, list(plan.kept["0"])]  # dense inputs, without those that went
        out = fitted[3](hidden).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(fitted[4].running_mean, out.mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fitted[4].running_var, out.var(0), rtol=2e-3, atol=1e-4)
    assert (fitted[4].running_var < net[4].running_var[rows]).all()


def test_layers_that_lose_nothing_stay() -> None:
    net, smaller, plan, moments, x = pruned("linear layers", 1.0)
    fitted = take_over(net, smaller, plan, moments, x[:1])
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in fitted.state_dict().items())
