r"""Interactions of removals: the Gauss–Newton Hessian of the loss in multiplicative gates, one gate per unit.

A gate at the inputs of a unit's consumers multiplies the unit where it is read: moving the gate from 1 to 0 removes the
unit exactly. A gate at the unit's producers multiplies the weights that compute it (`θ_s` of SOSP-I). In both cases the
derivative of the logits in the gate is activation times gradient, `∂f_n/∂g_u = Σ_t (∂f_n/∂a_{u,t}) a_{u,t}`. The
columns of `S_n`, where `S_n S_nᵀ` is the loss Hessian in the logits, are pushed back and give the rows of `Φ`. The sum
`Q = Φᵀ Φ / W` is held whole for few units, else as a factor of bounded size.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature.accumulate import new_sum
from hessprune.curvature.exact import choose_columns
from hessprune.curvature.ggn import TapMode, in_autocast
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, pose
from hessprune.curvature.results import Slices
from hessprune.foundation.processes import summed, summed_numbers
from hessprune.foundation.symmetric import SymmetricMatrix
from hessprune.foundation.trees import sample_rows
from hessprune.objectives.objective import BatchLoss, check_weight
from hessprune.operators.maps import Arguments, Convolution, LinearMap


@dataclass(frozen=True, kw_only=True)
class GateDerivatives:
    """First and second derivatives of the mean loss in all gates, units of all keys one after another."""

    quadratic: SymmetricMatrix
    """`Q`, `(U, U)`: the Gauss–Newton Hessian in the gates."""
    diagonal: Tensor
    """`(U,)`: the exact diagonal of `Q`, even where a factor left rows out."""
    dropped: float
    """`Tr(Q − quadratic) / Tr(Q)`: 0 unless a factor left rows out."""
    gradient: Tensor
    """`(U,)`: derivative of the loss in each gate; to first order, removing a unit changes the loss by its negative."""
    absolute_gradient: Tensor
    """`(U,)`: mean of the absolute derivatives of the samples' losses."""
    num_samples: int
    num_backwards: int
    seconds: float


def gate_interactions(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    loss_fn: Any = None,
    precision: str = "fp32",
    options: TraceOptions | None = None,
) -> GateDerivatives:
    """Return `Q = Φᵀ Φ / W` and the gradient for one gate per unit.

    Costs one forward pass and at most one backward pass per class and sample chunk (input gradients only). Up to 4 096
    units `Q` is the matrix: one product of `(N C, U)` matrices, memory `8 U²` and one chunk. Beyond, or where the
    options give `interaction_rows`, it is a factor of `r` rows: memory `4 r U`, `4 r²` and one chunk, and about
    `6 r U` operations for each of `N C` rows if these are more than `r` (4 096). The factor leaves out a positive
    semi-definite part; the result states its share of the trace.

    Args:
        model: Any module; it is left as it was.
        slices: For each key the slices of its `U` units. A slice along a weight's input axis gates what the weight
            reads; one along its output axis gates what the weight, without its bias, produces.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.
        precision: `"fp32"`, `"bf16"`, `"fp16"` or `"fp64"`.
        options: Memory limit, and the share of the loss curvature that may be left out.

    Returns:
        The derivatives, on the CPU in float64 (a factor: in float32 unless all is in double).

    Raises:
        DataError: All targets are ignored by the loss.

    References:
        Nonnenmacher et al. (2022), SOSP, arXiv 2110.11395, for gates at the producers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.curvature import ParamSlice
        >>> from hessprune.curvature.gate_interactions import gate_interactions
        >>> model = nn.Linear(1, 2, bias=False)
        >>> gate = ParamSlice(param="weight", dim=1, index=torch.tensor([[0]]))
        >>> x = torch.tensor([[3.0]])
        >>> derivatives = gate_interactions(model, {"x": [gate]}, [(x, torch.tensor([0]))], precision="fp64")
        >>> w, p = model.weight.detach().double()[:, 0], model(x).softmax(1)[0].double()
        >>> torch.allclose(derivatives.quadratic.dense()[0, 0], 9 * (w[0] - w[1]) ** 2 * p[0] * p[1])
        True
    """
    started = time.perf_counter()
    effort = Effort(estimator="exact", precision=precision, options=options or TraceOptions())
    problem = pose(model, slices, batches, loss_fn=loss_fn, effort=effort)
    total = _Sums(problem.readout.num_units, effort.options.interaction_rows)
    for _, inputs, loss in problem.each_batch("gate interactions"):
        total.num_samples += loss.samples
        if len(loss.counted()):
            _add_batch(problem, inputs, loss, total)
    total.over_processes()
    check_weight(total.weight)
    return GateDerivatives(
        quadratic=total.quadratic.result(total.weight),
        diagonal=total.diagonal / total.weight,
        dropped=total.quadratic.dropped / max(float(total.diagonal.sum()), 1e-300),
        gradient=total.gradient / total.weight,
        absolute_gradient=total.absolute / total.weight,
        num_samples=total.num_samples,
        num_backwards=total.num_backwards,
        seconds=time.perf_counter() - started,
    )


class _Sums:
    """Sums over samples, on the CPU in float64."""

    def __init__(self, size: int, max_rows: int | None) -> None:
        self.quadratic = new_sum(size, max_rows)
        self.gradient, self.absolute, self.diagonal = torch.zeros(3, size, dtype=torch.float64, device="cpu")
        self.weight, self.num_samples, self.num_backwards = 0.0, 0, 0

    def over_processes(self) -> None:
        """Add up the samples of all processes."""
        self.quadratic.over_processes()
        flat = summed(torch.stack([self.gradient, self.absolute, self.diagonal]))
        self.gradient, self.absolute, self.diagonal = flat
        self.weight, samples, backwards = summed_numbers(self.weight, self.num_samples, self.num_backwards)
        self.num_samples, self.num_backwards = round(samples), round(backwards)


def _add_batch(problem: Problem, inputs: Any, loss: BatchLoss, total: _Sums) -> None:
    """Add one batch: the loss gradient of every sample, and the columns that its loss Hessian needs."""
    values = problem.values(inputs, loss)
    factor = loss.factor(values)
    columns = choose_columns(factor, problem.tolerance)
    slope = loss.slope(values.to(problem.precision.dtype)) * factor.weight
    for rows, index in columns.chunks(problem.chunk_size, every_sample=True):
        tap = GateMode(problem.folded, problem.readout, 1, problem.objective.read)
        with problem.precision.casting(problem.device):
            tap.forward(sample_rows(inputs, rows))
        first = _push(problem, tap, slope[rows])
        total.gradient += first.sum(0).cpu()
        total.absolute += first.abs().sum(0).cpu()
        for column in index.unbind(1):
            phi = _push(problem, tap, factor.columns(rows, column))
            total.diagonal += phi.square().sum(0).cpu()
            total.quadratic.add(phi.to(problem.precision.dtype))
        tap.close()
        total.num_backwards += 1 + index.shape[1]
    total.weight += factor.weight


def _push(problem: Problem, tap: "GateMode", cotangent: Tensor) -> Tensor:
    """Push one vector per sample back; return `(N, num_units)` derivatives in float64."""
    return problem.precision.finite(lambda scale: tap.backward(cotangent * scale) / scale)


class GateMode(TapMode):
    """Runs one chunk with a gate at every input or output that a slice names; `backward` returns derivatives in it."""

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Run the layer, gated."""
        return _Gate.apply(self._anchor.to(arguments[0]), *in_autocast(*arguments), (self, name, call))

    def see(self, name: str, axis: int, call: LinearMap, product: Tensor) -> None:
        """Add `activation × gradient` to the row of one weight axis, `(N, size)`."""
        if axis not in self._readout.axes[name]:
            return
        row = _sum_positions(call, axis, product.float() if product.dtype.itemsize < 4 else product, self.samples)
        self._rows[name, axis] = self._rows[name, axis] + row if (name, axis) in self._rows else row


class _Gate(torch.autograd.Function):
    """A layer that reports activation × gradient at its input and output, and returns the input gradient alone."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, site: Any) -> Tensor:  # noqa: ARG004
        out = site[2].forward(x, weight, None)
        ctx.save_for_backward(x, weight, out)
        ctx.site = site
        if bias is None:
            return out.clone()  # the model may change its output in place
        return out + bias.view(-1, *[1] * (out.dim() - 2) * isinstance(site[2], Convolution))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, out = ctx.saved_tensors
        mode, name, call = ctx.site
        gradient = call.input_gradient(delta, x, weight)
        mode.see(name, int(call.transposed), call, delta * out)
        mode.see(name, 1 - int(call.transposed), call, gradient * x)
        return None, gradient if ctx.needs_input_grad[1] else None, None, None, None


def _sum_positions(call: LinearMap, axis: int, product: Tensor, samples: int) -> Tensor:
    """Sum over positions, `(N, size)` for a weight axis of that size; groups of a convolution share its inner axis."""
    if not isinstance(call, Convolution):
        return call.by_sample(product).sum(1)
    channels = product.flatten(2).sum(2).view(samples, -1, product.shape[1]).sum(1)
    return channels if axis == 0 else channels.view(samples, call.groups, -1).sum(1)
