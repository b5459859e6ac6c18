"""Claim: rounding widths to what the runtime's kernels like buys speed at the same MACs budget.

ResNet-56 and VGG-16-BN with random weights (ResNet-20 in a quick run), half of the MACs by magnitude, in multiples
of 1, 4 and 8 channels (VGG: 1, 8, 16); as FP32 and as INT8 files in ONNX Runtime, 1 thread, batch 32, all in turns;
medians within one run. The speed-up is over the dense FP32 file.
"""

import tempfile
from pathlib import Path

import torch

import hessprune as hp
from hessprune.lab.models import build_model
from support.claims import Claims, arguments
from support.networks import noise, warmed

EXAMPLE = torch.zeros(2, 3, 32, 32)
TARGETS = {"resnet20": 3.0, "resnet56": 3.0, "vgg16-bn": 6.0}
WIDTHS = {"resnet20": (1, 4, 8), "resnet56": (1, 4, 8), "vgg16-bn": (1, 8, 16)}


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    for name in ("resnet20",) if options.quick else ("resnet56", "vgg16-bn"):
        with tempfile.TemporaryDirectory() as folder:
            compare(claims, name, Path(folder), repeats=10 if options.quick else 60)
        claims.write(options.out)


def compare(claims: Claims, name: str, folder: Path, *, repeats: int) -> None:
    """Time the files of one network in turns."""
    dense = warmed(build_model(name, num_classes=10))
    models, macs = {"whole": dense}, {}
    for width in WIDTHS[name]:
        result = hp.prune(
            dense,
            EXAMPLE,
            [noise(64)],
            budget=hp.Budget(macs=0.5),
            method="magnitude",
            compensate=False,
            ranking=hp.Ranking(round_to=width),
        )
        models[f"multiples of {width}"], macs[width] = result.model, result.plan.kept_fraction("macs")
    files = {}
    for kind, model in models.items():
        files[kind, "FP32"] = hp.export_onnx(model, EXAMPLE, folder / f"{kind}-fp32.onnx", check=False)
        int8 = hp.calibrate(hp.prepare_qat(model, EXAMPLE), [noise(64)], method="minmax", rounding="nearest")
        files[kind, "INT8"] = hp.export_onnx(hp.convert_qat(int8), EXAMPLE, folder / f"{kind}-int8.onnx", check=False)
    named = {" ".join(key): path for key, path in files.items()}
    times = {key: found.median_ms for key, found in hp.compare_latency(named, noise(32)[0], repeats=repeats).items()}
    speed = {key: times["whole FP32"] / value for key, value in times.items()}
    print(name, {key: round(value, 2) for key, value in speed.items()}, macs)
    best = max(WIDTHS[name], key=lambda width: speed[f"multiples of {width} INT8"])
    claims.at_least(
        f"{name}: speed-up of half the MACs and INT8, multiples of {best}",
        speed[f"multiples of {best} INT8"],
        TARGETS[name],
        times["whole FP32"],
    )
    for width in WIDTHS[name][1:]:
        for kind in ("FP32", "INT8"):
            gain = speed[f"multiples of {width} {kind}"] / speed[f"multiples of 1 {kind}"]
            claims.at_least(f"{name}, {kind}: speed in multiples of {width} / of any width", gain, 1, macs[width])


if __name__ == "__main__":
    main()
