"""`joint` with compensation loses least on a vision transformer, too, pruned without training.

The compact ViT of `recipes/cifar10-vit.yaml` (64 patches, width 96, 6 blocks of 6 heads and 384 neurons), trained once
on the JPEG images of CIFAR-10 and kept below `--work`, which takes an hour on one core; no training after pruning.
Half and three quarters of the neurons, half of the heads, or both together, 50 to 70 % of the MACs. Every method sees
the same 512 training images of each draw; accuracy on the n = 10 000 test images. Variances of heads are sums over
their inputs, and count by cost. Milliseconds of one image in torch and in ONNX Runtime stand beside. A quick run takes
untrained weights and noise.
"""

import argparse
import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hessprune as hp
from hessprune.lab.context import open_run
from hessprune.lab.models.vit import VisionTransformer
from hessprune.lab.recipe import load_recipe
from hessprune.lab.stages import dense_model, trained
from support.claims import arguments
from support.encoder_designs import PICTURES
from support.encoder_study import Draw, Study, more_arguments, run_study

RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10-vit.yaml"


def behind(reader: str, blocks: int = 6) -> str:
    """Return the layer norm that takes the residual sum behind a reader."""
    block, _, layer = reader.removeprefix("blocks.").partition(".")
    if layer.startswith("attention"):
        return f"blocks.{block}.norm2"
    return f"blocks.{int(block) + 1}.norm1" if int(block) + 1 < blocks else "norm"


def pictures(options: argparse.Namespace) -> Study:
    """Return the trained ViT, with draws of calibration images."""
    run = open_run(load_recipe(RECIPE), options.work, options.data_root)
    dense = dense_model(run)

    def judge(model: nn.Module) -> tuple[float, float]:
        found = hp.evaluate(model, run.batches("test"))
        assert found.accuracy is not None
        return found.accuracy, found.loss

    def tune(model: nn.Module) -> nn.Module:
        config = run.settings.finetune
        return trained(
            run, "5-finetuned-study", lambda: copy.deepcopy(model).requires_grad_(True), config, inputs=[]
        ).model

    return Study(
        design=PICTURES,
        model=dense.model.requires_grad_(False).eval(),
        example=run.example,
        calibration=lambda draw: run.data.with_calibration(draw).batches("calibration", 64, shuffle=False),
        judge=judge,
        tune=tune,
        behind=behind,
        ignore=("conv1",),
        reads_first=False,
    )


def noise() -> Study:
    """Return an untrained ViT that is judged by its own answers."""
    model = VisionTransformer(4, depth=3, width=64).eval().requires_grad_(False)
    data = [torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    with torch.no_grad():
        batches = [(x, model(x).argmax(1)) for x in data]

    def judge(pruned: nn.Module) -> tuple[float, float]:
        found = hp.evaluate(pruned, batches[2:])
        assert found.accuracy is not None
        return found.accuracy, found.loss

    return Study(
        design=PICTURES,
        model=model,
        example=data[0][:1],
        calibration=lambda _: batches[:2],
        judge=judge,
        tune=copy.deepcopy,
        behind=partial(behind, blocks=3),
        ignore=("conv1",),
        reads_first=False,
    )


def latency(study: Study) -> list[dict[str, float]]:
    """Return milliseconds of one image on one thread, in torch and in ONNX Runtime, dense and pruned by us."""
    shares, dense = (1.0, *sorted(PICTURES.kinds["both"][2], reverse=True)), hp.cost(study.model, study.example)
    first, ours = Draw(study, 0), PICTURES.turns[0][0]
    models = {share: study.model if share == 1 else first.pruned(ours, "both", share) for share in shares}
    with tempfile.TemporaryDirectory() as folder:
        timed: dict[str, Any] = {f"torch {share}": model for share, model in models.items()}
        for share, model in models.items():
            timed[f"onnx {share}"] = hp.export_onnx(model, study.example, Path(folder) / f"{share}.onnx")
        found = hp.compare_latency(timed, study.example)
    return [
        {"kept": round(hp.cost(model, study.example).macs / dense.macs, 4)}
        | {runtime: round(found[f"{runtime} {share}"].median_ms, 3) for runtime in ("torch", "onnx")}
        for share, model in models.items()
    ]


def main() -> None:
    options = arguments(__doc__, more_arguments)
    build = noise if options.quick else lambda: pictures(options)
    run_study(options, PICTURES, build, extras={"latency": latency})


if __name__ == "__main__":
    main()
