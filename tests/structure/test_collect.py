"""Groups that are collected from labels, and axes that stay."""

import torch
from torch import Tensor, nn

import hessprune as hp


class Unread(nn.Module):
    """A table of frequencies from which a region of the graph makes what nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("frequencies", torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            angles = self.frequencies * x[:, :1]
            turns = angles.cos()
        turns.double()
        return self.b(self.a(x).relu())


def test_buffers_alone_are_no_units() -> None:
    groups = hp.find_groups(Unread().eval(), torch.randn(4, 6))
    assert [group.name for group in groups] == ["a"]
    assert "buffers alone have it, and no parameter" in {each.reason for each in groups.frozen}
