"""Element-wise operators."""

import torch
from torch import Tensor, nn

import hessprune as hp


def test_a_tensor_that_gives_its_type_alone_ties_nothing() -> None:
    class Typed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, width), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x).relu().type_as(self.b(x)))

    for width in (5, 8):
        (group,) = (group for group in hp.find_groups(Typed(width).eval(), torch.randn(4, 6)) if group.name == "a")
        assert {piece.param for piece in group.slices} == {"a.weight", "a.bias", "c.weight"}
