r"""Squared norms of per-sample weight gradients, in the cheaper of two orders.

With `a_{n,t}` the input patch and `δ_{n,o,t}` the gradient at the output of a layer, sample `n`'s weight gradient is
`g_{n,o} = Σ_t δ_{n,o,t} a_{n,t}`. Its squared norm is computed directly, or from the Gram matrix of the patches,

    ‖g_{n,o}‖² = Σ_{t,t'} δ_{n,o,t} (a_{n,t}·a_{n,t'}) δ_{n,o,t'} ,

which all output channels and all columns of the loss Hessian share. The direct order costs `T·O·K` multiplications for
each column, for `T` positions and `K` entries of a patch. The Gram order costs `T²·O` for each column and `T²·I` once,
or `T²·K` once where the input has far more positions than the output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hessprune.layers.recording import Use
from hessprune.operators.maps import Convolution, Linear, LinearMap

_ENTRY = 64
"""Cost of passing over one entry of a gradient or of a Gram matrix of positions, in multiplications (measured)."""
_PAYS = 1.5
"""Least factor by which the Gram order must be faster, since its matrices take memory."""
_GRAM_LIMIT = 1 << 10
"""Largest number of positions for which a Gram matrix is considered, so that it stays smaller than the activations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Sizes that decide on the order: positions `T`, outputs `O`, entries of a patch `K`."""

    positions: int
    outputs: int
    patch: int
    inputs: int
    """Positions of the input."""
    channels: int
    """Channels of the input."""
    gradient: int
    """Entries of one sample's weight gradient."""

    @property
    def shifts(self) -> bool:
        """True if the Gram matrix of the input's positions costs less than the patches, in time and memory."""
        return self.inputs**2 < self.positions * min(self.patch, self.positions * self.patch // self.channels)

    def prefers_gram(self, columns: float) -> bool:
        """Return True if the Gram order costs less for this number of columns."""
        if self.positions == 1:
            return True
        if self.positions > _GRAM_LIMIT:
            return False
        squared = self.positions**2
        build = self.inputs**2 * (self.channels + _ENTRY) if self.shifts else squared * self.patch
        direct = columns * self.outputs * self.patch * (self.positions + _ENTRY)
        return _PAYS * (build + columns * squared * self.outputs) < direct


def geometry_of(call: LinearMap, x: Tensor, weight: Tensor, delta: Tensor) -> Geometry | None:
    """Return the sizes of a layer's call, or None where only the direct order is implemented."""
    if isinstance(call, Convolution) and (call.transposed or call.groups != 1):
        return None
    return _geometry(call, x.shape, delta.shape, weight, len(x) if isinstance(call, Convolution) else call.samples)


def sizes_of(use: Use, weight: Tensor) -> Geometry:
    """Return the sizes of a recorded use, which ran on two samples."""
    return _geometry(use.call, use.input_shape, use.output_shape, weight, 2)


def _geometry(call: LinearMap, inputs: Sequence[int], outputs: Sequence[int], weight: Tensor, samples: int) -> Geometry:
    axis = -1 if isinstance(call, Linear) else 1
    positions, met = (math.prod(shape) // (samples * shape[axis]) for shape in (outputs, inputs))
    patch = inputs[-1] if isinstance(call, Linear) else weight[0].numel()
    return Geometry(
        positions=positions,
        outputs=outputs[axis],
        patch=patch,
        inputs=met,
        channels=inputs[axis],
        gradient=weight.numel(),
    )


def patch_gram(call: LinearMap, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the Gram matrices of every sample's patches, `(N, T, T)`."""
    if isinstance(call, Linear):
        rows = call.by_sample(x)
        return rows @ rows.transpose(1, 2)
    if geometry.shifts:
        return _shifted_gram(call, x, weight)
    patches = call.patches(x, weight)
    return patches.transpose(1, 2) @ patches


def _shifted_gram(call: Convolution, x: Tensor, weight: Tensor) -> Tensor:
    """Return the Gram matrices of patches from those of input positions; overlapping patches share their entries."""
    rank, rows = x.dim() - 2, x.flatten(2)
    gram = (rows.transpose(1, 2) @ rows).view(len(x), *x.shape[2:] * 2)
    for axis, size in enumerate(call.output_size(x, weight)):
        before, between = [slice(None)] * (1 + axis), [slice(None)] * (rank - 1)
        total = gram.new_zeros([size if a in (1 + axis, 1 + axis + rank) else n for a, n in enumerate(gram.shape)])
        for out, into in call.offsets(axis, x, weight):
            total[*before, out, *between, out] += gram[*before, into, *between, into]
        gram = total
    return gram.view(len(x), math.prod(gram.shape[1 : 1 + rank]), -1)


def gram_norms(call: LinearMap, gram: Tensor, delta: Tensor) -> Tensor:
    """Return `‖g_{n,o}‖²` as `(N, O)`, from the patch Gram matrices."""
    rows = call.by_sample(delta).transpose(1, 2) if isinstance(call, Linear) else delta.flatten(2)
    if gram.shape[-1] == 1:
        return rows.squeeze(2).square() * gram.flatten(1)
    return ((rows @ gram) * rows).sum(2)
