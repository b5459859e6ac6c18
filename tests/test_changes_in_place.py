"""Outputs of layers that the model changes in place are scored as those of a model that does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp

METHODS = ["hap", "hap(estimator=hutchinson)", "sosp-i", "sosp-h", "taylor", "nvit", "joint"]


class Net(nn.Module):
    """A sequence whose first layer's output grows by a table, in place or not."""

    def __init__(self, *, in_place: bool, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.inner, self.head = nn.Linear(6, 8, bias=bias), nn.Linear(8, 8, bias=bias), nn.Linear(8, 3)
        self.table, self.in_place = nn.Parameter(torch.randn(4, 1)), in_place

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.in_place:
            h += self.table
        else:
            h = h + self.table
        h = self.inner(F.gelu(h))
        return self.head((h.mul_(2) if self.in_place else h * 2).relu().mean(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_changes_in_place_do_not_matter(method: str, bias: bool) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(24, 4, 6), torch.arange(24) % 3
    found = []
    for in_place in (True, False):
        net = Net(in_place=in_place, bias=bias).eval()
        groups = hp.find_groups(net, x)
        assert groups
        found.append(hp.saliency(net, groups, [(x, y)], method=method, loss_fn=F.cross_entropy))
    for name, values in found[1].items():
        torch.testing.assert_close(found[0][name], values, rtol=1e-4, atol=1e-7)
