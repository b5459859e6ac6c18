"""Claim: a budget of half the latency lands within 10 % of it, and keeps more than a MACs budget that is as fast.

One thread, batch 32, dense and pruned model timed in turns; shares of the dense model's latency in the same runtime.
Peers are MACs budgets, in any widths and in multiples of 8 channels: a bisection looks for the nearest faster and the
nearest slower one, and what they keep is interpolated to the same latency; where none is as fast, the nearest slower
one must keep less. Accuracy: pretrained ResNet-56 on 1 017 lossless test images, one-shot, compensated on 512 others.
VGG-16-BN has no published weights here: the share of the saliency (squared weights) that stays. The share that is asked
for in integers is one that its kernels can reach: of 16 channels they are no faster with 8.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hessprune as hp
from hessprune.lab.data import load_dataset
from hessprune.lab.models import build_model
from hessprune.latency.table import measured_share, timing
from hessprune.pruning.recovery import recovered
from support.claims import Claims, arguments
from support.networks import MEAN, STD, pretrained, warmed

CASES = (
    ("resnet56", "torch", 0.5, (1, 8)),
    ("resnet56", "onnxruntime", 0.5, (8,)),
    ("resnet56", "onnxruntime-int8", 0.75, ()),
    ("vgg16-bn", "torch", 0.5, (1, 8)),
    ("vgg16-bn", "onnxruntime", 0.5, (8,)),
    ("vgg16-bn", "onnxruntime-int8", 0.5, (8,)),
)
"""Network, runtime, share to keep, and `round_to` of the MACs budgets beside it."""
QUICK = (("resnet20", "torch", 0.5, ()),)
BATCH = 32


def main() -> None:
    options, claims, found = arguments(__doc__), Claims(), []
    torch.set_num_threads(1)
    for name, runtime, share, beside in QUICK if options.quick else CASES:
        network = Network(name, options.data_root, quick=options.quick)
        found.append(one_case(claims, network, runtime, share, beside=beside))
    claims.write(options.out, cases=found)


class Network:
    """A network, what it is calibrated on, and what is counted as kept."""

    def __init__(self, name: str, root: Path, *, quick: bool) -> None:
        self.name, self.trained = name, name.startswith("resnet")
        data = load_dataset("npz", root=root, calibration_size=64 if quick else 512).with_normalisation(MEAN, STD)
        self.calibration = list(data.batches("calibration", 128, shuffle=False))
        self.test = list(data.batches("test", 256, shuffle=False))
        self.model = pretrained(int(name[6:]), root) if self.trained else warmed(build_model(name, num_classes=10))
        self.method = "joint" if self.trained and not quick else "magnitude"
        self.example = self.calibration[0][0][:1]

    def kept(self, plan: hp.Plan, saliency: hp.Saliency, model: nn.Module | None = None) -> float:
        """Return accuracy in per cent, or the share of the saliency that stays, in per cent."""
        if not self.trained:
            lost = sum(float(saliency[name][list(units)].sum()) for name, units in plan.removed.items())
            return 100 * (1 - lost / sum(float(value.sum()) for value in saliency.values()))
        if model is None:
            model = recovered(self.model, hp.apply_plan(self.model, plan), plan, self.calibration)
        return 100 * hp.evaluate(model, self.test).accuracy


def one_case(claims: Claims, network: Network, runtime: str, share: float, *, beside: Sequence[int]) -> dict[str, Any]:
    """Ask for a share of the latency; then look for the MACs budgets that are as fast."""
    target = hp.LatencyTarget(runtime=runtime, batch_size=BATCH)  # type: ignore[arg-type]
    budget, settings = (
        hp.Budget(latency_ms=f"{100 * share:g}%", target=target),
        {"method": network.method, "compensate": network.trained},
    )
    result = hp.prune(network.model, network.example, network.calibration, budget=budget, seed=0, **settings)
    images = network.test[0][0][:BATCH]
    facts = result.plan.provenance["latency"]
    with timing(network.model, images, target) as watch:
        found = measured_share(network.model, result.plan, watch)
        kept = network.kept(result.plan, result.saliency, result.model)
        case = {"network": network.name, "runtime": runtime, "asked": share, "measured": found, "kept": kept}
        case |= {"macs": result.plan.kept_fraction("macs"), "table": dict(facts), "peers": []}
        for step in beside:
            case["peers"].append({"round_to": step, "around": around(network, result.saliency, found, watch, step)})
    judge(claims, case)
    return case


def judge(claims: Claims, case: Mapping[str, Any]) -> None:
    """Claim what one case shows."""
    label, found, asked = f"{case['network']}, {case['runtime']}", case["measured"], case["asked"]
    off = abs(found / asked - 1)
    claims.at_most(f"{label}: relative distance of the latency from {asked:g} of the dense one", off, 0.1, peer=found)
    what = "accuracy, points" if case["network"].startswith("resnet") else "saliency kept, points"
    for peer in case["peers"]:
        name = f"{label}: {what} over MACs (round_to={peer['round_to']}) at {found:.3f} of the latency"
        shown = " and ".join(f"{side['kept']:.1f} at {side['measured']:.3f}" for side in peer["around"])
        if len(peer["around"]) == 2:
            claims.at_least(name, case["kept"] - interpolated(found, *peer["around"]), 0, peer=shown)
        elif peer["around"][0]["measured"] > found and peer["around"][0]["kept"] <= case["kept"]:
            claims.at_least(f"{name}, all slower", case["kept"] - peer["around"][0]["kept"], 0, peer=shown)
        else:
            claims.add(name, f"no MACs budget on both sides: {shown}", ">= 0", holds=None, peer=f"{case['kept']:.1f}")


def interpolated(share: float, faster: Mapping[str, float], slower: Mapping[str, float]) -> float:
    """Return what is kept between two measured models, linearly at `share` of the latency."""
    part = (share - faster["measured"]) / (slower["measured"] - faster["measured"])
    return faster["kept"] + part * (slower["kept"] - faster["kept"])


def around(network: Network, saliency: hp.Saliency, share: float, watch: Any, step: int) -> list[dict[str, float]]:
    """Return the nearest faster and the nearest slower model that MACs budgets lead to, as far as there are."""
    groups, ranking = hp.find_groups(network.model, network.example), hp.Ranking(round_to=step)
    low, high = 0.2, 0.8
    sides: dict[bool, tuple[float, hp.Plan]] = {}
    for _ in range(6):
        middle = (low + high) / 2
        budget = hp.Budget(macs=middle)
        plan = hp.make_plan(network.model, groups, saliency, budget, example_inputs=network.example, ranking=ranking)
        measured = measured_share(network.model, plan, watch)
        slower = measured > share
        if slower not in sides or abs(measured - share) < abs(sides[slower][0] - share):
            sides[slower] = measured, plan
        low, high = (low, middle) if slower else (middle, high)
    return [
        {"measured": measured, "macs": plan.kept_fraction("macs"), "kept": network.kept(plan, saliency)}
        for _, (measured, plan) in sorted(sides.items())
    ]


if __name__ == "__main__":
    main()
