"""Stand-ins: the input that they read in the place of some filters of a layer, and the least squares that fit them.

A filter of a k×k convolution becomes a 1×1 filter that reads the position of the kernel's centre; or, given a rank `r`,
all replaced filters of a layer (linear ones too) share `r` filters of the full kernel and mix them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.foundation.modules import call_model, device_of
from hessprune.foundation.progress import track
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import to_device
from hessprune.layers.least_squares import damping
from hessprune.layers.sums import Sums
from hessprune.structure.carriers import CONVOLUTIONS, centre_padding

MAX_ROWS = 32768
"""Positions of one batch that the least squares uses."""
RIDGE = 1e-8
"""Relative to the mean diagonal of `XᵀX`, which it keeps invertible."""


def flat_padding(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return amounts in the order of `F.pad`: last axis first."""
    return [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]


def design(layer: Any, x: Tensor, rank: int | None) -> Tensor:
    """Return the inputs of a stand-in per output position, `(R, K)`: the kernel's centre, or with a rank all of it."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    axes = CONVOLUTIONS[type(layer)]
    x = x if x.dim() == axes + 2 else x[None]
    if rank is None:
        steps = tuple(slice(None, None, step) for step in layer.stride)
        seen = F.pad(x, flat_padding(*centre_padding(layer)))[(..., *steps)]
    else:
        size = layer.weight[0].numel()
        patches = torch.eye(size, dtype=x.dtype, device=x.device).view(size, *layer.weight.shape[1:])
        seen = layer._conv_forward(x, patches, None)
    return seen.movedim(1, -1).flatten(0, -2)


def outputs(layer: Any, out: Tensor) -> Tensor:
    """Return a layer's output without its bias, `(R, O)`."""
    if isinstance(layer, nn.Linear):
        rows = out.flatten(0, -2)
    else:
        axes = CONVOLUTIONS[type(layer)]
        rows = (out if out.dim() == axes + 2 else out[None]).movedim(1, -1).flatten(0, -2)
    return rows if layer.bias is None else rows - layer.bias


def low_rank_fit(sums: Sums, rank: int | None, size: Tensor | None = None) -> Tensor:
    """Minimise `‖y − x W‖² + λ ‖W‖²` over `W (K, O)` of at most that rank; `λ` is at least a share of `size`.

    The best `W` of rank `r` is the unrestricted one projected on the `r` directions in which its outputs vary most.
    """
    ridge = damping(sums.xx, RIDGE, size) * torch.eye(len(sums.xx), dtype=sums.xx.dtype, device=sums.xx.device)
    weight = torch.linalg.solve(sums.xx + ridge, sums.xy)
    if rank is None:
        return weight
    main = torch.linalg.eigh(weight.T @ sums.xx @ weight).eigenvectors[:, -rank:]
    return weight @ main @ main.T


@torch.no_grad()
def layer_sums(model: nn.Module, layers: Mapping[str, int | None], batches: Iterable[Any]) -> dict[str, Sums]:
    """Run a model over batches and return for each layer the moments of its stand-in's inputs and of its outputs.

    Args:
        model: Left untouched; runs in evaluation mode.
        layers: Names of layers, each with the rank of its stand-in.
        batches: `(inputs, targets)`.
    """
    sums: dict[str, Sums] = {}

    def watch(name: str, rank: int | None) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor) -> None:
            x, y = design(layer, args[0] if args else kwargs["input"], rank), outputs(layer, out)
            if len(x) > MAX_ROWS:
                drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")
                chosen = drawn[:MAX_ROWS].to(x.device)
                x, y = x[chosen], y[chosen]
            more = Sums.of(x, y)
            sums[name] = sums[name] + more if name in sums else more

        return hook

    hooks = [
        model.get_submodule(name).register_forward_hook(watch(name, rank), with_kwargs=True)
        for name, rank in layers.items()
    ]
    try:
        with evaluation_mode(model):
            for inputs, _ in track(list(batches), "stand-ins"):
                call_model(model, to_device(inputs, device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    return sums
