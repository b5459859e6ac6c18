"""Stand-ins: what may take the place of some filters of a layer, what it reads, and the least squares that fit it.

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
from hessprune.layers.sums import Sums

CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""Layers that can have a stand-in, and over how many axes their kernel slides; with a `rank`, linear layers can too."""
MAX_ROWS = 32768
"""Positions of one batch that the least squares looks at."""
RIDGE = 1e-8
"""Relative to the mean diagonal of `XᵀX`: only there to keep it invertible."""


def obstacle(layer: Any, rank: int | None) -> str:
    """Say why filters of a layer cannot be replaced; empty where they can."""
    kind = type(layer)
    if kind not in {*CONVOLUTIONS, nn.Linear}:
        return f"it is a {kind.__name__}"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks"
    if rank is None and (kind is nn.Linear or layer.weight[0, 0].numel() == 1):
        return "it has no kernel to shrink: set `rank`"
    if kind is not nn.Linear and layer.groups > 1:
        return "it is a grouped convolution"
    if rank is None and layer.padding_mode != "zeros" and max(sum(centre_padding(layer), ())) > 0:
        return f"its 1×1 filters would read {layer.padding_mode} padding"
    return ""


def centre(layer: Any) -> tuple[int, ...]:
    """Return the position in the kernel that a 1×1 filter takes over: the middle, the left one of two."""
    return tuple((size - 1) // 2 for size in layer.kernel_size)


def centre_padding(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding, before and after, with which a 1×1 filter sees what the kernel's centre sees (negative: cut).

    Example:
        >>> centre_padding(nn.Conv2d(1, 1, 3, padding=1)), centre_padding(nn.Conv1d(1, 1, 3))
        (((0, 0), (0, 0)), ((-1,), (-1,)))
    """
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        own = [(total // 2, total - total // 2) if layer.padding == "same" else (0, 0) for total in reach]
    else:
        own = [(amount, amount) for amount in layer.padding]
    left = [d * at for d, at in zip(layer.dilation, centre(layer), strict=True)]
    return (
        tuple(before - x for (before, _), x in zip(own, left, strict=True)),
        tuple(after - (total - x) for (_, after), total, x in zip(own, reach, left, strict=True)),
    )


def flat_padding(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return amounts in the order of `F.pad`: last axis first."""
    return [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]


def design(layer: Any, x: Tensor, rank: int | None) -> Tensor:
    """Return what a stand-in multiplies at every output position, `(R, K)`: the centre, or with a rank all."""
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


def low_rank_fit(sums: Sums, rank: int | None) -> Tensor:
    """Minimise `‖y − x W‖² + λ ‖W‖²` over `W (K, O)` of at most that rank.

    The best `W` of rank `r` is the unrestricted one projected on the `r` directions in which its outputs vary most.
    """
    strength = RIDGE * sums.xx.diagonal().mean().clamp(min=1e-30)
    ridge = strength * torch.eye(len(sums.xx), dtype=sums.xx.dtype, device=sums.xx.device)
    weight = torch.linalg.solve(sums.xx + ridge, sums.xy)
    if rank is None:
        return weight
    main = torch.linalg.eigh(weight.T @ sums.xx @ weight).eigenvectors[:, -rank:]
    return weight @ main @ main.T


def unexplained(sums: Sums, weight: Tensor) -> Tensor:
    """Return the share of each output's square that `x W` leaves over, `(O,)` in [0, 1]."""
    return (sums.error(weight) / sums.yy.clamp(min=1e-30)).clamp(0, 1)


@torch.no_grad()
def layer_sums(model: nn.Module, layers: Mapping[str, int | None], batches: Iterable[Any]) -> dict[str, Sums]:
    """Run a model over batches; return for each layer the moments of what its stand-in reads and of what it gives.

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
                chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MAX_ROWS].to(x.device)
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
