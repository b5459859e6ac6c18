"""Prune, train in your own way, prune again; then save one plan that leads from the dense model to the last one.

`hp.prune` makes a plan for the model that it is given. `plan.then(next_plan)` joins two plans in a row into one for the
dense model, so that a checkpoint stays weights and one plan, however often you pruned.

Run: python examples/iterative.py
"""

import torch
from torch import nn

import hessprune as hp
from hessprune.lab.data import load_dataset

OUT = "out/iterative"


def make_net() -> nn.Module:
    """Return a small network; any `nn.Module` will do."""
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(model: nn.Module, batches: list, epochs: int) -> None:
    """Train in place: a plain loop of torch, which knows nothing of pruning."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def main() -> None:
    """Halve the MACs in two rounds, and read the result back."""
    torch.manual_seed(0)
    data = load_dataset("digits")
    training, validation, calibration = (
        list(data.batches(name, 64)) for name in ("train", "validation", "calibration")
    )
    example = training[0][0][:1]

    dense = make_net()
    train(dense, training, epochs=12)
    print(f"dense    {100 * (hp.evaluate(dense, validation).accuracy or 0):5.1f}% validation")

    model, plan = dense, None
    for _ in range(2):  # each round keeps 0.71 of what is left: half in all
        result = hp.prune(model, example, calibration, budget=hp.Budget(macs=0.71))
        plan = result.plan if plan is None else plan.then(result.plan)
        model = result.model
        train(model, training, epochs=3)
        kept = 100 * plan.kept_fraction("macs")
        print(f"{kept:4.1f}% MACs {100 * (hp.evaluate(model, validation).accuracy or 0):5.1f}% validation")

    assert plan is not None
    print(plan)
    hp.save(model, plan, OUT)
    again = hp.load(OUT, make_net)
    print("read back, bit for bit the same:", torch.equal(again(example), model.eval()(example)))


if __name__ == "__main__":
    main()
