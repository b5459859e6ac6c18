"""Claim: one Rademacher draw ranks channels like the exact traces, at about the cost of one training step.

n = 336 lossless CIFAR-10 images, pretrained ResNets, every output channel of every layer, five seeds. Beside it stand
two controls from their formulas. The Kronecker proxy: `Tr H_cc ≈ G_c · tr A` with one layer's mean squared inputs and
mean squared output gradients, for labels drawn from the model's own predictions. The label-free score of Sony's Model
Compression Toolkit: `Tr(JᵀJ)` of the outputs, one sign vector an image, image by image.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hessprune.curvature import TraceOptions, block_traces
from support.claims import Claims, arguments, interleaved, spearman
from support.networks import channels, images, pretrained, saliency, weights

SEEDS = 5
ENOUGH = 0.97
"""Rank correlation at which a cheaper proxy would be offered as an estimator."""

Traces = dict[str, Tensor]


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    for depth in (20,) if options.quick else (20, 56):
        model, data = pretrained(depth, options.data_root), images(options.data_root, 64 if options.quick else 336)
        compare(claims, f"ResNet-{depth}", model, data, 1 if options.quick else SEEDS)
    claims.write(options.out)


def compare(claims: Claims, name: str, model: nn.Module, data: tuple[Tensor, Tensor], seeds: int) -> None:
    """Compare the three on one network: ranks of the saliencies of all layers, and of those within a layer."""
    exact = traces_of(model, data, "exact", 0)
    ways: dict[str, Callable[[int], Traces]] = {
        "one Rademacher draw": lambda seed: traces_of(model, data, "rademacher", seed),
        "Kronecker proxy": lambda seed: kronecker(model, data[0], seed),
        "label-free score": lambda seed: label_free(model, data[0], seed),
    }
    step = interleaved({"step": lambda: one_step(model, data)}, 3)["step"]
    for way, run in ways.items():
        seconds = interleaved({way: lambda run=run: run(0)}, 1 if way == "label-free score" else 3)[way]
        found = [run(seed) for seed in range(1 if way == "label-free score" else seeds)]
        ranks = [spearman(saliency(model, each), saliency(model, exact)) for each in found]
        within = [statistics.fmean(spearman(each[key], exact[key]) for key in exact) for each in found]
        claims.add(f"{name}, {way}: training steps", seconds / step, "measured", holds=True)
        claims.add(f"{name}, {way}: rank correlation within a layer", statistics.fmean(within), "measured", holds=True)
        title = f"{name}, {way}: rank correlation of the saliencies"
        mean, ours = statistics.fmean(ranks), way == "one Rademacher draw"
        target = f">= {ENOUGH}" if ours else f"below {ENOUGH}, else it is to be offered"
        claims.add(title, mean, target, holds=(mean >= ENOUGH) == ours)


def traces_of(model: nn.Module, data: tuple[Tensor, Tensor], estimator: str, seed: int) -> Traces:
    """Return our traces."""
    settings = None if estimator == "exact" else TraceOptions(num_probes=1)
    return block_traces(model, channels(model), [data], estimator=estimator, seed=seed, options=settings).values


def one_step(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """Run one forward and one backward over all images."""
    functional.cross_entropy(model(data[0]), data[1]).backward()
    model.zero_grad()


def kronecker(model: nn.Module, inputs: Tensor, seed: int) -> Traces:
    """Return `G_c · tr A` for all channels: one forward and one backward, no gradients of single samples."""
    layers = {f"{name}.weight": module for name, module in model.named_modules() if f"{name}.weight" in weights(model)}
    read: dict[str, float] = {}
    emitted: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, args, out, name=name: _keep(name, layer, args[0], out, read, emitted))
        for name, layer in layers.items()
    ]
    logits = model(inputs)
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
    loss = functional.cross_entropy(logits, drawn, reduction="sum")
    gradients = torch.autograd.grad(loss, list(emitted.values()))
    return {
        name: read[name] * gradient.double().square().transpose(0, 1).flatten(1).mean(1)
        for name, gradient in zip(emitted, gradients, strict=True)
    }


def _keep(
    name: str, layer: nn.Module, x: Tensor, out: Tensor, read: dict[str, float], emitted: dict[str, Tensor]
) -> None:
    """Note the sum of squares that a sample's windows hold on average, and the output."""
    squares = x.detach().double().square().sum(1, keepdim=True) if x.dim() == 4 else x.detach().double().square().sum(1)
    if isinstance(layer, nn.Conv2d):
        ones = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
        squares = functional.conv2d(squares, ones, stride=layer.stride, padding=layer.padding)
    read[name] = float(squares.sum()) / len(x)
    emitted[name] = out


def label_free(model: nn.Module, inputs: Tensor, seed: int) -> Traces:
    """Return the mean over images of `(d(v·f)/dw)²`, summed over the weights of each channel."""
    tensors, generator = weights(model), torch.Generator().manual_seed(seed)
    total = {name: torch.zeros(len(value), dtype=torch.float64) for name, value in tensors.items()}
    for image in inputs.split(1):
        logits = model(image)
        signs = torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1
        gradients = torch.autograd.grad((signs * logits).sum(), list(tensors.values()))
        for name, gradient in zip(tensors, gradients, strict=True):
            total[name] += gradient.double().flatten(1).square().sum(1) / len(inputs)
    return total


if __name__ == "__main__":
    main()
