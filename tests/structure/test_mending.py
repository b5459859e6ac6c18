"""Sizes of a group that reaches through many modules are followed from failure to failure."""

import torch
from torch import Tensor, nn

import hessprune as hp


class Product(nn.Module):
    """Takes its output size from an attribute, as GPT-2's layers do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class Block(nn.Module):
    """Has one attribute that counts the embedding, and one of the same value that does not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), Product(width, 20), Product(20, width)
        self.width, self.limit = width, width

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(self.norm(x)).clamp(max=self.limit).relu())
        return x + y.reshape(len(x), -1, self.width)


def test_every_class_of_modules_gets_its_attribute() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 12), Block(12), Block(12), nn.LayerNorm(12), nn.Linear(12, 2)).double().eval()
    x = torch.randn(2, 5, 3).double()
    groups = hp.find_groups(net, x, units=("embedding",), compare=True)
    (group,) = groups
    assert {(item.module, item.attribute) for item in group.literals} == {
        ("1", "width"), ("1.down", "nf"), ("2", "width"), ("2.down", "nf"),
    }  # fmt: skip
    plan = hp.make_plan(net, groups, {group.name: torch.arange(12.0)}, hp.Budget(units=0.5), example_inputs=x)
    pruned = hp.apply_plan(net, plan, example_inputs=x)
    assert (pruned[1].width, pruned[1].limit, pruned[2].down.nf, pruned[2].up.nf) == (6, 12, 6, 20)


def test_a_size_that_nothing_holds_stays() -> None:
    class Fixed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(12, dtype=x.dtype)

    net = nn.Sequential(nn.Linear(3, 12), Fixed(12), nn.Linear(12, 20), nn.Linear(20, 2)).double().eval()
    groups = hp.find_groups(net, torch.randn(2, 5, 3).double(), units=("embedding", "neurons"))
    assert {group.kind for group in groups} == {"neurons"}
