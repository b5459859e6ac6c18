"""Look at what can be pruned before pruning: groups, the slices tied to them, and why the rest is frozen.

Run: python examples/inspect_groups.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp


class Net(nn.Module):
    """A residual stream, a concatenation, a depthwise convolution, and a split whose sizes the source code fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.outer = nn.Conv2d(12, 8, 1)
        self.side = nn.Conv2d(8, 6, 1)
        self.merge = nn.Conv2d(14, 10, 1)
        self.top = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) → (N, 5)
        """Return the logits."""
        x = F.relu(self.stem(x))
        x = x + self.outer(F.relu(self.depthwise(self.inner(x))))
        x = self.merge(torch.cat([x, self.side(x)], 1))
        left, right = x.split([4, 6], 1)
        return self.head(torch.cat([self.top(left), right], 1).mean((2, 3)))


def main() -> None:
    model, example = Net(), torch.zeros(1, 3, 16, 16)
    groups = hp.find_groups(model, example)
    print(groups.table())

    # An axis is prunable, or it is listed as frozen with the reason; `ignore` freezes more of them.
    kept_whole = hp.find_groups(model, example, ignore=["inner"])
    print(f"\n{len(groups)} groups; with `ignore=['inner']`:", ", ".join(group.name for group in kept_whole))


if __name__ == "__main__":
    main()
