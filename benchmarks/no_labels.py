"""Claim: without labels and without a loss, half of a network keeps what labels give.

n = 1017 lossless CIFAR-10 test images, pretrained ResNet-56 (ResNet-20 in a quick run), half of the MACs by `joint`,
512 calibration images in 3 draws. Once with labels and cross-entropy, once with the images alone; nothing is trained.
Random and magnitude stand beside, with cross-entropy and the same refit.
"""

import statistics
from typing import Any

import torch.nn.functional as F

import hessprune as hp
from hessprune.lab.data import load_dataset
from support.claims import Claims, arguments
from support.networks import MEAN, STD, pretrained

WAYS = ("labels and cross-entropy", "images alone", "magnitude", "random")


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    rows: list[dict[str, Any]] = []
    depth = 20 if options.quick else 56
    model = pretrained(depth, options.data_root)
    for seed in (0,) if options.quick else (0, 1, 2):
        data = load_dataset("npz", root=options.data_root, seed=seed, calibration_size=512)
        data = data.with_normalisation(MEAN, STD)
        labelled = list(data.batches("calibration", 512, shuffle=False))
        test = data.batches("test", 512, shuffle=False)
        for way in WAYS:
            method = way if way in ("magnitude", "random") else "joint"
            batches = [images for images, _ in labelled] if way == "images alone" else labelled
            result = hp.prune(
                model,
                labelled[0][0][:1],
                batches,
                budget=hp.Budget(macs=0.5),
                method=method,
                loss_fn=None if way == "images alone" else F.cross_entropy,
                seed=seed,
            )
            accuracy = 100 * float(hp.evaluate(result.model, test).accuracy or 0)
            kept = {name: result.plan.kept_fraction(name) for name in ("macs", "params")}
            rows.append({"way": way, "seed": seed, "accuracy": accuracy, **kept})
            print(rows[-1], flush=True)
    found = {way: [row["accuracy"] for row in rows if row["way"] == way] for way in WAYS}
    shown = "; ".join(f"{way} {statistics.mean(v):.1f} ± {statistics.pstdev(v):.1f}" for way, v in found.items())
    distance = abs(statistics.mean(found[WAYS[0]]) - statistics.mean(found[WAYS[1]]))
    claims.at_most(f"ResNet-{depth}, half of the MACs: points between labels and none", distance, 0.3, peer=shown)
    claims.write(options.out, rows=rows)


if __name__ == "__main__":
    main()
