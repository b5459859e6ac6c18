"""Claims: one backward pass ranks units almost as the exact trace does, and both cost a few training steps.

n = 336 lossless CIFAR-10 images, pretrained ResNet-20 and ResNet-56, all output channels. Times are the shortest of
interleaved rounds; ratios are within one run. Peers run on a sequential network that all of them support, and are
skipped by name where they are not installed (pip install --no-deps pyhessian backpack-for-pytorch
curvlinops-for-pytorch).
"""

import contextlib
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.curvature import TraceOptions, TraceResult, block_traces, has_bf16
from support.claims import Claims, arguments, interleaved, spearman
from support.hap import PlainHap
from support.networks import channels, images, joined, plain_network, pretrained, saliency, weights

Batches = list[tuple[Tensor, Tensor]]


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    batches = [images(options.data_root)]
    for depth in (20,) if options.quick else (20, 56):
        against_a_training_step(claims, f"resnet{depth}", pretrained(depth, options.data_root), batches, options.quick)
    against_peers(claims, batches, options.quick)
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
        2 if quick else 5,
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


def against_peers(claims: Claims, batches: Batches, quick: bool) -> None:
    """Show 5: the same quantity on the same data, on a network that the peer supports.

    Peers that draw 100 products draw fewer of them in a quick run, and their time is scaled up.
    """
    model, inputs, targets = plain_network(), *batches[0]
    exact = joined(trace(model, batches, "exact").values)
    products = 5 if quick else 100
    peers = {
        "BackPACK DiagGGNExact": ("exact", 1, lambda: backpack_diagonal(model, inputs, targets, "DiagGGNExact")),
        "BackPACK DiagGGNMC": ("rademacher", 1, lambda: backpack_diagonal(model, inputs, targets, "DiagGGNMC")),
        "curvlinops GGN diagonal": ("exact", 100 / products, lambda: curvlinops_diagonal(model, batches, products)),
        "PyHessian whole trace": ("exact", 100 / products, lambda: pyhessian_trace(model, inputs, targets, products)),
    }
    for name, (estimator, factor, run) in peers.items():
        try:
            theirs, seconds = timed(run)
        except ImportError as error:
            claims.add(f"{name} / ours", f"peer not installed: {error}", ">= 3", holds=None)
            continue
        ours = interleaved({"": lambda e=estimator: trace(model, batches, e, 1)}, 2 if quick else 5)[""]
        difference = float((theirs - (exact if theirs.dim() else exact.sum())).abs().sum() / exact.sum())
        title = f"{name} / ours {estimator} (differs by {difference:.1%})"
        claims.at_least(title, seconds * factor / ours, 3, peer=seconds * factor)


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return a peer's result and its seconds; its first call is also its only one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        return run(), time.perf_counter() - started


def backpack_diagonal(model: nn.Module, inputs: Tensor, targets: Tensor, extension: str) -> Tensor:
    """Return the diagonal Gauss–Newton matrix summed over each channel, by BackPACK."""
    import copy

    import backpack
    from backpack import extensions

    model = backpack.extend(copy.deepcopy(model))
    loss = backpack.extend(nn.CrossEntropyLoss())(model(inputs), targets)
    with backpack.backpack(getattr(extensions, extension)()):
        loss.backward()
    attribute = {"DiagGGNExact": "diag_ggn_exact", "DiagGGNMC": "diag_ggn_mc"}[extension]
    return torch.cat([getattr(value, attribute).flatten(1).sum(1) for value in weights(model).values()]).double()


def curvlinops_diagonal(model: nn.Module, batches: Batches, products: int) -> Tensor:
    """Return the same by curvlinops: Hutchinson's estimate of the diagonal."""
    import curvlinops

    tensors = weights(model)
    operator = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), list(tensors.values()), batches)
    diagonal = torch.as_tensor(curvlinops.hutchinson_diag(operator, num_matvecs=products))
    sizes = [value.numel() for value in tensors.values()]
    parts = zip(diagonal.detach().split(sizes), tensors.values(), strict=True)
    return torch.cat([part.view_as(value).flatten(1).sum(1) for part, value in parts]).double()


def pyhessian_trace(model: nn.Module, inputs: Tensor, targets: Tensor, products: int) -> Tensor:
    """Return the trace of the whole Hessian, by PyHessian at its default effort.

    Its tolerance is switched off: it is compared with a signed quantity, so that a negative estimate stops the loop.
    """
    import copy

    import pyhessian

    with contextlib.redirect_stdout(None):
        computer = pyhessian.hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), data=(inputs, targets), cuda=False)
        return torch.tensor(computer.trace(maxIter=products, tol=float("-inf"))).mean().double()


if __name__ == "__main__":
    main()
