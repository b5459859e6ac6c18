"""Bring your own saliency: any tensor per group drives the same exact budget, surgery and checks.

The criterion here is the mean activation of a channel after its ReLU, measured with a forward hook. It stands beside
what every criterion must be compared with, chance and the size of the weights, at equal MACs and without training.

Run: python examples/custom_criterion.py
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.lab.data import ImageBatches, load_dataset


def make_model() -> nn.Sequential:
    widths = (1, 24, 32, 32)
    blocks = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in itertools.pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def mean_activation(model: nn.Module, groups: hp.Groups, batches: ImageBatches) -> dict[str, Tensor]:
    """Return the mean activation of every unit, `{group name: (U,)}`: what `hp.make_plan` takes."""
    means = {group.name: torch.zeros(group.num_units, dtype=torch.float64) for group in groups}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> None:  # (N, U, H, W)
            means[name] += output.mean((2, 3)).sum(0) / batches.num_samples

        # The convolution "1.0" emits the units of group "1.0"; their activation is what block "1" returns.
        return model.get_submodule(name.split(".")[0]).register_forward_hook(add)

    handles = [watch(group.name) for group in groups]
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    for handle in handles:
        handle.remove()
    return means


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_dataset("digits")
    train, validation, calibration = (data.batches(split, 64) for split in ("train", "validation", "calibration"))
    model = hp.finetune(make_model(), train, validation, config=hp.FinetuneConfig(epochs=8, lr=0.1)).model

    example = torch.zeros(1, 1, 8, 8)
    groups = hp.find_groups(model, example)
    criteria = {"mean activation": mean_activation(model, groups, calibration)}
    criteria |= {method: hp.saliency(model, groups, calibration, method) for method in ("magnitude", "random")}

    print(f"{'dense':<16} validation {hp.evaluate(model, validation).accuracy:6.1%}")
    for name, values in criteria.items():
        plan = hp.make_plan(model, groups, values, hp.Budget(macs=0.7), example_inputs=example)
        smaller = hp.reestimate_batchnorm(hp.apply_plan(model, plan), calibration)
        kept = plan.cost_after.macs / plan.cost_before.macs
        print(f"{name:<16} validation {hp.evaluate(smaller, validation).accuracy:6.1%} at {kept:.1%} of the MACs")


if __name__ == "__main__":
    main()
