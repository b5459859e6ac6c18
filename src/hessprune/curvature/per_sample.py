r"""Squared norms of per-sample weight gradients, by whichever of two orders is cheaper.

With `a_{n,t}` the input patch and `δ_{n,o,t}` the gradient at the output of a layer, sample `n`'s weight gradient is
`g_{n,o} = Σ_t δ_{n,o,t} a_{n,t}`, and its squared norm is either taken directly or through the Gram matrix of the
patches,

    ‖g_{n,o}‖² = Σ_{t,t'} δ_{n,o,t} (a_{n,t}·a_{n,t'}) δ_{n,o,t'} ,

which all output channels and all columns of the loss Hessian share. The first order costs `T·O·K` multiplications for
each column, the second `T²·O`, after `T²·I` once (`T` positions, `K` entries of a patch).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hessprune._watch.calls import Call, Convolution, Linear
from hessprune._watch.recording import Use

_GRAM_BUILD = 6.0
"""Cost of building a patch Gram matrix, in units of its quadratic form per output channel and position (measured)."""
_GRAM_LIMIT = 1 << 10
"""Largest number of positions for which a Gram matrix is considered, so that it stays smaller than the activations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Sizes that decide the order: positions `T`, outputs `O`, entries of a patch `K`."""

    positions: int
    outputs: int
    patch: int
    gradient: int
    """Entries of one sample's weight gradient."""

    def prefers_gram(self, columns: float) -> bool:
        """Return whether the Gram order costs less over that many columns."""
        if self.positions == 1:
            return True
        if self.positions > _GRAM_LIMIT:
            return False
        direct = columns * self.outputs * self.patch
        return self.positions * (columns * self.outputs + _GRAM_BUILD * self.patch / 9) < direct


def geometry_of(call: Call, x: Tensor, weight: Tensor, delta: Tensor) -> Geometry | None:
    """Return the sizes of a use, or None where only the direct order is implemented."""
    if isinstance(call, Convolution) and (call.transposed or call.groups != 1):
        return None
    return _geometry(call, x.shape, delta.shape, weight, len(x) if isinstance(call, Convolution) else call.samples)


def sizes_of(use: Use, weight: Tensor) -> Geometry:
    """Return the sizes of a recorded use, which ran on two samples."""
    return _geometry(use.call, use.input_shape, use.output_shape, weight, 2)


def _geometry(call: Call, inputs: Sequence[int], outputs: Sequence[int], weight: Tensor, samples: int) -> Geometry:
    channels = -1 if isinstance(call, Linear) else 1
    positions = math.prod(outputs) // (samples * outputs[channels])
    patch = inputs[-1] if isinstance(call, Linear) else weight[0].numel()
    return Geometry(positions=positions, outputs=outputs[channels], patch=patch, gradient=weight.numel())


def patch_gram(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    """Return the Gram matrices of every sample's patches, `(N, T, T)`."""
    if isinstance(call, Linear):
        rows = call.by_sample(x)
        return rows @ rows.transpose(1, 2)
    patches = _patches(call, x, weight)
    return patches.transpose(1, 2) @ patches


def gram_norms(call: Call, gram: Tensor, delta: Tensor) -> Tensor:
    """Return `‖g_{n,o}‖²` as `(N, O)`, from the patch Gram matrices."""
    rows = call.by_sample(delta).transpose(1, 2) if isinstance(call, Linear) else delta.flatten(2)
    if gram.shape[-1] == 1:
        return rows.squeeze(2).square() * gram.flatten(1)
    return ((rows @ gram) * rows).sum(2)


def _patches(call: Convolution, x: Tensor, weight: Tensor) -> Tensor:
    """Return the input patches `(N, K, T)` of a convolution of any dimension."""
    if weight[0, 0].numel() == 1 and set(call.stride) == {1} and not any(call.padding):
        return x.flatten(2)
    if weight.dim() == 4:
        return F.unfold(x, weight.shape[2:], call.dilation, call.padding, call.stride)
    x = F.pad(x, [side for side in reversed(call.padding) for _ in range(2)])
    for axis, (k, s, d) in enumerate(zip(weight.shape[2:], call.stride, call.dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    rank = weight.dim() - 2
    order = [0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)]
    return x.permute(order).reshape(x.shape[0], weight[0].numel(), -1)
