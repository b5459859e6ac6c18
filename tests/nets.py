"""Factories that recipes of tests name: one that works, and some that cannot."""

import torch
from torch import Tensor, nn


class Fine(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Overflowing(Fine):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.inf


class Branching(Fine):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class ThreeChannels(Fine):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.first = nn.Conv2d(3, 8, 3)


class FewClasses(Fine):
    def __init__(self) -> None:
        super().__init__(3)


class OneLayer(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))
