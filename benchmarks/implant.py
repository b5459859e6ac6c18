"""A fitted implant against one that starts at zero, and against plain removal, at equal MACs.

n = 1017 lossless CIFAR-10 test images, pretrained ResNet-20, all channels, 512 calibration images in 3 draws, budgets
of 60, 50 and 40 % of the MACs, a tenth of the leaving units implanted, saliency `joint` with signed interactions, as
without compensation. One-shot, with and without compensation; with `--epochs 2` also after fine-tuning on the JPEG
training images (one-cycle, learning rate 0.03, one draw).
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

import hessprune as hp
from hessprune.lab.data import Dataset, load_dataset
from hessprune.methods.text import as_method
from hessprune.pruning.recovery import recovered
from hessprune.surgery.implants.fitting import fit_stand_ins
from support.claims import Claims, arguments
from support.networks import MEAN, STD, pretrained

VARIANTS: dict[str, hp.Implant | float] = {
    "nothing": 0.0,
    "zero": hp.Implant(share=0.1, start="zero"),
    "fitted": hp.Implant(share=0.1),
}
BUDGETS = (0.6, 0.5, 0.4)
SEEDS = (0, 1, 2)
COMPENSATED = ("nothing", "fitted")
QUICK = ("nothing", "zero", "fitted")
LR = 0.03


def main() -> None:
    options, claims = arguments(__doc__, own_options), Claims()
    rows = []
    for row in measured(options):
        rows.append(row)
        print(row, flush=True)
    judge(claims, rows)
    claims.write(options.out, rows=rows, method=options.method)


def own_options(parser: ArgumentParser) -> None:
    """Add what only this script takes."""
    parser.add_argument("--method", default="joint", help="saliency")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of fine-tuning on the JPEG images")


def measured(options: Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row for every variant, budget, draw and stage."""
    model = pretrained(20, options.data_root)
    for seed in SEEDS[: 1 if options.quick else None]:
        data = lossless(options.data_root, seed)
        batches, test = data.batches("calibration", 512, shuffle=False), data.batches("test", 512, shuffle=False)
        example = next(iter(batches))[0][:1]
        groups = hp.find_groups(model, example)
        scores = hp.saliency(model, groups, batches, method=as_method(options.method).with_refit(False))
        for budget in (0.5,) if options.quick else BUDGETS:
            for name in QUICK if options.quick else VARIANTS:
                implant = VARIANTS[name]
                limit = hp.Budget(macs=budget)
                plan = hp.make_plan(model, groups, scores, limit, example_inputs=example, implant=implant)
                fitted = getattr(implant, "start", "fitted") == "fitted"
                pruned = hp.apply_plan(model, plan, start="centre" if fitted else "zero")
                pruned = fit_stand_ins(model, pruned, plan, batches) if fitted and plan.implanted else pruned
                facts = {"variant": name, "budget": budget, "seed": seed, "macs": plan.kept_fraction("macs")}
                facts |= {"removed": plan.num_removed, "implanted": plan.num_implanted}
                for stage, smaller in stages(options, model, pruned, plan, batches, name, seed):
                    yield {**facts, "stage": stage, "accuracy": hp.evaluate(smaller, test).accuracy}


def stages(
    options: Namespace, dense: nn.Module, pruned: nn.Module, plan: hp.Plan, batches: Any, name: str, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Yield what becomes of one pruned model."""
    yield "one-shot", pruned
    yield "one-shot, BatchNorm re-estimated", hp.reestimate_batchnorm(pruned, batches)
    smaller = pruned
    if name in COMPENSATED and not options.quick:
        smaller = recovered(dense, pruned, plan, batches)
        yield "one-shot, compensated", smaller
    if options.epochs and seed == SEEDS[0] and name in QUICK:
        yield f"{options.epochs} epochs", tuned(smaller, options)


def judge(claims: Claims, rows: list[dict[str, Any]]) -> None:
    """Claim for every stage and budget that fitted beats zero beats nothing, on average over the draws."""
    for stage, budget in dict.fromkeys((row["stage"], row["budget"]) for row in rows):
        found = {name: [] for name in VARIANTS}
        for row in rows:
            if (row["stage"], row["budget"]) == (stage, budget):
                found[row["variant"]].append(100 * row["accuracy"])
        means = {name: statistics.mean(values) for name, values in found.items() if values}
        shown = "; ".join(f"{name} {mean:.1f} ± {statistics.pstdev(found[name]):.1f}" for name, mean in means.items())
        for better, worse in (("fitted", "zero"), ("fitted", "nothing"), ("zero", "nothing")):
            if better in means and worse in means:
                where = f"{stage}, {budget:.0%} of the MACs: points of {better} over {worse}"
                claims.at_least(where, means[better] - means[worse], 0, peer=shown)


def lossless(root: Path, seed: int) -> Dataset:
    """Return the lossless images, with another draw for calibration."""
    return load_dataset("npz", root=root, seed=seed, calibration_size=512).with_normalisation(MEAN, STD)


def tuned(model: nn.Module, options: Namespace) -> nn.Module:
    """Fine-tune on the JPEG images."""
    data = load_dataset("parquet", root=options.data_root / "cifar10_jpeg", seed=0, validation_size=1000)
    data = data.with_normalisation(MEAN, STD)
    config = hp.FinetuneConfig(epochs=options.epochs, lr=LR)
    train, validation = data.batches("train", 128, augment=True, seed=0), data.batches("validation", 256)
    return hp.finetune(model, train, validation, config=config).model


if __name__ == "__main__":
    main()
