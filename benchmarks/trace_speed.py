"""Claims: one backward pass ranks units almost as the exact trace does, and both cost a few training steps.

n = 336 lossless CIFAR-10 images, pretrained ResNet-20 and ResNet-56, all output channels. Times are the shortest of
interleaved rounds; ratios are within one run.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.curvature import TraceOptions, TraceResult, block_traces, has_bf16
from support.claims import Claims, arguments, interleaved, spearman
from support.hap import PlainHap
from support.networks import channels, images, joined, pretrained, saliency

Batches = list[tuple[Tensor, Tensor]]


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    batches = [images(options.data_root)]
    for depth in (20,) if options.quick else (20, 56):
        against_a_training_step(claims, f"resnet{depth}", pretrained(depth, options.data_root), batches, options.quick)
        claims.write(options.out)


def trace(
    model: nn.Module, batches: Batches, estimator: str, probes: int | None = None, precision: str = "fp32"
) -> TraceResult:
    """Return the traces of all output channels."""
    options = TraceOptions(num_probes=probes)
    return block_traces(model, channels(model), batches, estimator=estimator, precision=precision, options=options)


def against_a_training_step(claims: Claims, name: str, model: nn.Module, batches: Batches, quick: bool) -> None:
    """Shows 1 to 3: ratios to one forward and backward pass of the unfolded network on the same batch."""
    (inputs, targets), probes = batches[0], 3

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()

    times = interleaved(
        {
            "step": step,
            "rademacher": lambda: trace(model, batches, "rademacher", 1),
            "exact": lambda: trace(model, batches, "exact"),
        },
        2 if quick else 4,
    )
    exact, one_draw = trace(model, batches, "exact"), trace(model, batches, "rademacher", 1)
    claims.at_least(
        f"{name}: rank correlation of one draw with exact",
        spearman(saliency(model, one_draw.values), saliency(model, exact.values)),
        0.97,
    )
    claims.at_most(f"{name}: one draw / training step", times["rademacher"] / times["step"], 1.5, peer=times["step"])
    claims.at_most(f"{name}: exact / training step", times["exact"] / times["step"], 7, peer=times["step"])
    per_probe = probe_times(model, batches, 1 if quick else 3, probes)
    claims.at_least(
        f"{name}: 300 plain HAP probes / exact", 300 * per_probe["plain"] / times["exact"], 30, per_probe["plain"]
    )
    native = "native" if has_bf16(torch.device("cpu")) else "no BF16 kernels here: computed in fp32"
    ratio = per_probe["plain"] / per_probe["ours"]
    claims.at_least(f"{name}: plain HAP probe / hutchinson bf16 probe ({native})", ratio, 2.5, per_probe["plain"])
    several = trace(model, batches, "hutchinson", 10 if quick else 30, "bf16")
    error = (joined(several.values) - joined(exact.values)).abs() / joined(several.standard_error or {}).clamp(
        min=1e-30
    )
    claims.at_least(
        f"{name}: share of channels where bf16 probes lie within 3 standard errors",
        float((error < 3).double().mean()),
        0.95,
    )


def probe_times(model: nn.Module, batches: Batches, repeats: int, probes: int) -> dict[str, float]:
    """Return seconds per probe, set-up taken out, of the published procedure and of ours in BF16."""
    plain = PlainHap(model, *batches[0])
    runs: dict[str, Callable[[], object]] = {
        "plain": plain.probe,
        "one": lambda: trace(model, batches, "hutchinson", 1, "bf16"),
        "many": lambda: trace(model, batches, "hutchinson", 1 + probes, "bf16"),
    }
    times = interleaved(runs, repeats)
    return {"plain": times["plain"], "ours": (times["many"] - times["one"]) / probes}


if __name__ == "__main__":
    main()
