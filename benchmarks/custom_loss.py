"""Claim: a user-defined loss costs at most three times what cross-entropy costs.

A U-Net with three classes, 64 images of 64 × 64 (16 in a quick run), half of the MACs by `joint`; processor seconds of
the whole `hp.prune` on one thread. The custom loss is Dice plus a focal term over all pixels, whose curvature is the
empirical Fisher. The floor is one forward and backward pass over the images.
"""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from support.claims import Claims, arguments


class UNet(nn.Module):
    """Two halvings, and concatenations on the way up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.c = _block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width)
        self.up1, self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.d, self.e, self.out = _block(4 * width, 2 * width), _block(2 * width, width), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up1(c), b], 1))
        return self.out(self.e(torch.cat([self.up2(d), a], 1)))


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def dice_and_focal(output: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over images of Dice, plus a focal cross-entropy."""
    p, truth = output.softmax(1), F.one_hot(labels, 3).movedim(3, 1).to(output)
    dice = 1 - (2 * (p * truth).sum((2, 3)) + 1) / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    sure = (p * truth).sum(1)
    return dice.mean() - ((1 - sure) ** 2 * sure.clamp(min=1e-6).log()).mean()


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    number = 16 if options.quick else 64
    model, x = UNet(), torch.randn(number, 3, 64, 64)
    with torch.no_grad():
        model.train()(x)  # statistics of BatchNorm
    model.eval()
    batches = [(x[start : start + 16], torch.randint(0, 3, (len(x[start : start + 16]), 64, 64)))
               for start in range(0, number, 16)]  # fmt: skip
    seconds = {
        name: spent(hp.prune, model, x[:1], batches, budget=hp.Budget(macs=0.5), loss_fn=loss)
        for name, loss in (("cross-entropy", F.cross_entropy), ("custom", dice_and_focal), ("none", None))
    }
    seconds["floor"] = spent(floor, model, x)
    print({name: round(value, 2) for name, value in seconds.items()})
    name = f"U-Net, {number} images of 64 × 64: processor time over cross-entropy"
    claims.at_most(f"{name}, Dice and focal loss", seconds["custom"] / seconds["cross-entropy"], 3.0, peer=seconds)
    claims.at_most(f"{name}, no loss at all", seconds["none"] / seconds["cross-entropy"], 3.0, peer=seconds)
    claims.write(options.out, seconds=seconds)


def spent(function: Any, *args: Any, **kwargs: Any) -> float:
    """Return the processor seconds of a call."""
    started = time.process_time()
    function(*args, **kwargs)
    return time.process_time() - started


def floor(model: nn.Module, x: Tensor) -> None:
    """Run forward and backward over all images."""
    for part in x.split(16):
        model(part).square().mean().backward()


if __name__ == "__main__":
    main()
