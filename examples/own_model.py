"""Halve the MACs of a model of your own: prune → fine-tune → save → load → ONNX, on handwritten digits, in seconds.

Run: python examples/own_model.py [folder]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.lab.data import load_dataset


class GatedBlock(nn.Module):
    """A residual block whose channels are weighted by a squeeze-and-excite gate."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.gate = nn.Conv2d(hidden, hidden, 1)
        self.project = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) → the same
        """Add the gated branch to the input."""
        y = F.relu(self.norm(self.expand(x)))
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        return F.relu(x + self.project(y))


class DigitNet(nn.Module):
    """Nothing here knows of pruning: no base class, no registration, no special layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.first, self.second = GatedBlock(16, 32), GatedBlock(16, 32)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 8, 8) → (N, 10)
        """Return the logits."""
        x = self.second(F.max_pool2d(self.first(F.relu(self.stem(x))), 2))
        return self.head(x.mean((2, 3)))


def main(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_dataset("digits")
    train, validation = data.batches("train", 64), data.batches("validation", 256)
    calibration, test = data.batches("calibration", 128), data.batches("test", 256)

    # Stands for the trained model that you have already.
    dense = hp.finetune(DigitNet(), train, validation, config=hp.FinetuneConfig(epochs=6, lr=0.1)).model

    example = torch.zeros(1, 1, 8, 8)
    result = hp.prune(dense, example, calibration, budget=hp.Budget(macs=0.5))
    print(result.plan)

    config = hp.FinetuneConfig(epochs=6, lr=0.05, distill_weight=0.5)
    tuned = hp.finetune(result.model, train, validation, config=config, teacher=dense).model
    for name, model in {"dense": dense, "pruned": result.model, "fine-tuned": tuned}.items():
        print(f"{name:<10} {hp.evaluate(model, test).accuracy:6.1%} on test, {hp.cost(model, example)}")

    hp.save(tuned, result.plan, folder / "model")
    loaded = hp.load(folder / "model", DigitNet)
    images = next(iter(test))[0]
    print("loaded model, bit for bit the same:", torch.equal(loaded(images), tuned(images)))
    print("written and checked:", hp.export_onnx(loaded, example, folder / "model.onnx").name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/own_model"))
