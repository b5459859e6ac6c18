"""Second-order rounding: what rounding one weight costs is made up for by the weights that are not rounded yet.

A layer's output changes by `ΔW x`, and its squared length, summed over the data, is `tr(ΔW G ΔWᵀ)` with the Gram matrix
`G = Σ x xᵀ` of the layer's inputs: the Hessian of the squared error in one row of weights. Rounding to the nearest
ignores all of G but its diagonal.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from hessprune.layers.regression import columns_of, design, rows_of, weight_from
from hessprune.operators.maps import LinearMap, SampleLayout
from hessprune.operators.table import integer_kind, read_linear_map
from hessprune.quantize.graph import Use, run_all, spying, uses
from hessprune.quantize.rewrite import tensor_of

MIN_ROWS = 1024  # positions read of every batch, or as many as there are inputs to an output
MAX_BYTES = 2**28  # of the Gram matrices gathered in one pass over the data
DAMPING = 0.01


def round_weights(model: GraphModule, batches: Iterable[Any]) -> None:
    """Put the weights of a graph with activation ranges on their grids, in place; the grids stay."""
    for portion in _portions(model):
        with spying(model, {use.node: partial(gram.add, use) for gram in portion for use in gram.uses}):
            run_all(model, batches, "rounding")
        for gram in portion:
            gram.round_weight()


def round_columns(columns: Tensor, gram: Tensor, scale: Tensor, *, limit: int) -> Tensor:
    """Round weights one input after the other, each time moving the error to the inputs not yet rounded.

    With `U` the upper Cholesky factor of `(G + λI)⁻¹`, rounding input k of an output leaves the error
    `e = (w_k − q_k) / U_kk`, and the least-squares answer of the inputs behind it is `w_j −= e U_kj`. Inputs come in
    the order of falling `G_kk`. The largest weight of an output stays at the limit, so that the grid can be read off
    the result: `scale = max|w| / limit`.

    Args:
        columns: Weights, `(g, K, O)`.
        gram: `Σ x xᵀ` over the inputs x of each group of a layer, `(g, K, K)`.
        scale: Steps of the grids, `(g, O)`.
        limit: Integers reach from −limit to limit.

    Returns:
        Weights on the grids, `(g, K, O)` in float64.

    References:
        Frantar, Ashkboos, Hoefler and Alistarh (2023), GPTQ: accurate post-training quantization for generative
            pre-trained transformers, arXiv:2210.17323, Section 3.3.
    """
    gram, scale = gram.double(), scale.double()
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)  # (g, K)
    left = columns.double().take_along_dim(order[:, :, None], 1)
    factor = _factor(gram.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None], 2))
    largest = left.abs().argmax(1)  # (g, O)
    ends = left.take_along_dim(largest[:, None], 1)[:, 0].sign() * limit
    rounded = torch.empty_like(left)
    for k in range(left.shape[1]):
        nearest = (left[:, k] / scale).round().clamp(-limit, limit)
        rounded[:, k] = torch.where(largest == k, ends, nearest) * scale
        error = (left[:, k] - rounded[:, k]) / factor[:, k, k, None]
        left[:, k + 1 :] -= factor[:, k, k + 1 :, None] * error[:, None]
    return torch.empty_like(rounded).scatter_(1, order[:, :, None].expand_as(rounded), rounded)


def _factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped inverse; inputs that are always zero weigh next to nothing."""
    damping = (DAMPING * gram.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=1e-12)
    damped = gram + torch.diag_embed(damping[:, None].expand(gram.shape[:2]))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def _portions(model: GraphModule) -> "Iterator[list[_Gram]]":
    """Yield weights in portions whose Gram matrices fit into memory together; one weight at least."""
    by_param: dict[str, list[Use]] = {}
    for use in uses(model):
        if integer_kind(use.node.target) == "layer":  # weights of transposed convolutions go to the nearest
            by_param.setdefault(use.param, []).append(use)
    portion: list[_Gram] = []
    for same in by_param.values():
        gram = _Gram(model, same)
        if portion and sum(other.nbytes for other in portion) + gram.nbytes > MAX_BYTES:
            yield portion
            portion = []
        portion.append(gram)
    if portion:
        yield portion


class _Gram:
    """One weight, and the sum of `x xᵀ` over samples of what its layer reads."""

    def __init__(self, model: GraphModule, same: list[Use]) -> None:
        self.uses, self._weight = same, tensor_of(model, same[0].node.args[1].args[0])  # type: ignore[union-attr,arg-type]
        self._call: LinearMap | None = None
        self._sum = torch.zeros((), device="cpu")
        self._generator = torch.Generator().manual_seed(0)

    @property
    def nbytes(self) -> int:
        """Size of the matrices in float64."""
        return 8 * self._weight[0].numel() ** 2 * self._groups

    @property
    def _groups(self) -> int:
        arguments = self.uses[0].node.args
        return int(arguments[6]) if len(arguments) > 6 else 1  # type: ignore[arg-type]

    def add(self, use: Use, out: Tensor, x: Tensor) -> None:
        """Take in a batch at random positions."""
        node = use.node
        reading = read_linear_map(node.target, (x, self._weight, None, *node.args[3:]), {})
        assert reading is not None
        (x, *_), make = reading
        self._call = make(len(x), SampleLayout())
        number = len(rows_of(self._call, out))
        wanted = min(number, max(MIN_ROWS, self._weight[0].numel()))
        positions = torch.randperm(number, generator=self._generator, device="cpu")[:wanted].to(x.device)
        inputs = design(self._call, x, self._weight, positions).transpose(0, 1)  # (g, R, K)
        self._sum = self._sum.to(x.device) + (inputs.mT @ inputs).double()

    @torch.no_grad()
    def round_weight(self) -> None:
        """Overwrite the weight."""
        assert self._call is not None
        quantizer, columns = self.uses[0].weight, columns_of(self._call, self._weight)
        quantizer(self._weight)  # which sets the scale
        scale = quantizer.scale.view(columns.shape[0], -1)
        rounded = round_columns(columns, self._sum, scale, limit=quantizer.quant_max)
        self._weight.copy_(weight_from(self._call, rounded, self._weight))
