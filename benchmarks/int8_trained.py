"""Claim: trained with rounding, INT8 is closer to its FP32 parent than `quantize_static` of it, and not slower.

Finished runs of `recipes/ehap-resnet56.yaml` and `recipes/ehap-vgg16.yaml` on 10 000 JPEG test images (`--runs`; the
demo, if none is given). The peer quantises `model.onnx` of the same run on the same 512 calibration images, per
channel, with full and with reduced range: the better of both in each figure. Latency: 1 thread, batch 32, interleaved,
10th percentiles.
"""

import tempfile
from argparse import ArgumentParser
from pathlib import Path

import torch

import hessprune as hp
from hessprune.lab.cli import app
from hessprune.lab.context import open_run
from hessprune.lab.recipe import load_recipe
from support.claims import Claims, arguments
from support.integers import Scores, by_the_peer, logits_of

BATCH = 32


def main() -> None:
    options, claims = arguments(__doc__, own_options), Claims()
    with tempfile.TemporaryDirectory() as folder:
        for run in options.runs or [demo(Path(folder) / "demo")]:
            compare(claims, run, options.data_root, Path(folder), few=not options.runs)
    own = f"--runs {' '.join(f'out/{run.name}' for run in options.runs)}" if options.runs else ""
    claims.write(options.out, arguments=own)


def own_options(parser: ArgumentParser) -> None:
    """Add what only this script takes."""
    parser.add_argument("--runs", type=Path, nargs="*", metavar="FOLDER", help="finished runs that end in int8.onnx")


def demo(out: Path) -> Path:
    """Run the demo."""
    app(["demo", "--out", str(out)], standalone_mode=False)
    return out


def compare(claims: Claims, run: Path, data_root: Path, folder: Path, *, few: bool) -> None:
    """Compare the INT8 file of a run with what the peer makes of its FP32 file; `few` images tell no more than that."""
    settings = load_recipe(run / "recipe.yaml")
    data = open_run(settings, folder, data_root)
    calibration, test = list(data.batches("calibration")), list(data.batches("test"))
    labels, name = torch.cat([targets for _, targets in test]), settings.report.title
    slack = round(-200 / len(labels), 2)
    files = {"ours": run / "int8.onnx"}
    for kind in ("full", "reduced"):
        files[kind] = by_the_peer(run / "model.onnx", calibration, folder / f"{run.name}-{kind}.onnx", kind)
    reference = logits_of(run / "model.onnx", test)
    scores = {kind: Scores.of(logits_of(path, test), reference, labels) for kind, path in files.items()}
    parent, ours = Scores.of(reference, reference, labels), scores.pop("ours")
    shown = "; ".join(f"{kind} range {score.accuracy:.2f}" for kind, score in scores.items())
    claims.at_least(f"{name}: INT8 − FP32, points", ours.accuracy - parent.accuracy, -0.5, parent.accuracy)
    best = max(score.accuracy for score in scores.values())
    claims.at_least(f"{name}: ours − quantize_static, points, at least −2 images", ours.accuracy - best, slack, shown)
    if few:
        return
    best = max(score.agreement for score in scores.values())
    claims.at_least(f"{name}: same prediction as FP32", ours.agreement, best, best)
    best = min(score.divergence for score in scores.values())
    claims.at_most(f"{name}: divergence from FP32 / that of quantize_static", ours.divergence / best, 1, best)
    times = hp.compare_latency(files, test[0][0][:BATCH], num_threads=1, repeats=20)
    fastest = min(times[kind].p10_ms for kind in scores)
    claims.at_most(f"{name}: latency / quantize_static", times["ours"].p10_ms / fastest, 1.02, fastest)


if __name__ == "__main__":
    main()
