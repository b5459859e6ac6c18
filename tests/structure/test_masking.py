"""Masks: zeros in slices, and norms over the channels that stay."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.structure.masking import mask_groups


class ChannelsFirst(nn.LayerNorm):
    """A norm over axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def test_norms_see_the_channels_that_stay_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)).double().eval()
    x = torch.randn(5, 3).double()
    (group,) = hp.find_groups(net, x, units=("embedding",))
    masked = copy.deepcopy(net)
    mask_groups(masked, [(group, [1, 4])], "all")
    kept = [0, 2, 3, 5]
    weight, bias = net[1].weight[kept], net[1].bias[kept]
    inner = F.layer_norm(net[0](x)[:, kept], (4,), weight, bias)
    assert torch.allclose(masked(x), F.linear(inner, net[2].weight[:, kept], net[2].bias), atol=1e-12)
    assert not torch.allclose(masked(x), net(x), atol=1e-3)


def test_the_axis_of_the_channels_is_the_one_with_zeros() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), ChannelsFirst(6), nn.Conv2d(6, 2, 1)).double().eval()
    x = torch.randn(2, 3, 6, 6).double()  # as many columns as channels
    (group,) = hp.find_groups(net, x, units=("embedding",), compare=True)
    plan = hp.make_plan(
        net, [group], {group.name: torch.arange(6.0)}, hp.Budget(units=0.5), example_inputs=x
    )  # fmt: skip
    assert hp.verify(net, hp.apply_plan(net, plan, example_inputs=x), plan, x) < 1e-12


def test_other_groups_are_masked_as_before() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    (group,) = hp.find_groups(net, torch.zeros(1, 3))
    for followers, rows in (("kept", False), ("layers", True), ("all", True)):
        masked = copy.deepcopy(net)
        mask_groups(masked, [(group, [2]), (group, [])], followers)  # type: ignore[arg-type]
        assert not masked[0].weight[2].any()
        assert not masked[2].weight[:, 2].any()
        assert bool(masked[0].bias[2] == 0) is rows
        assert masked[0].weight[1].any()
