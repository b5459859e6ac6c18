r"""The engine of `exact` and `rademacher`: push columns of the loss Hessian back, square what arrives at the weights.

For a column or draw `u_n` in logit space, one backward pass gives `δ = (∂f_n/∂z)ᵀ u_n` at every layer's output `z`;
the squared norm of the per-sample weight gradient `Σ_t δ_t a_t` is what the draw adds to `Tr(S_nᵀ J_n J_nᵀ S_n)`.
Only input gradients are asked of autograd, and every layer's contribution is taken on the way and forgotten, so no
gradient outlives its layer.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hessprune._checks import leading_size
from hessprune._modules import call_model, logits_of
from hessprune.curvature.calls import Arguments, Call
from hessprune.curvature.folding import Folded
from hessprune.curvature.per_sample import geometry_of, gram_norms, patch_gram
from hessprune.curvature.readout import Wanted
from hessprune.curvature.recording import CallMode, slow_attention, weight_names


class TapMode(CallMode):
    """Runs the forward pass of one chunk with a tap behind every wanted weight, then takes backward passes."""

    def __init__(self, folded: Folded, want: Wanted, columns: float) -> None:
        names = {key: name for key, name in weight_names(folded.model).items() if name in want.axes}
        super().__init__(names, 0, folded.recording.layouts)
        self._model = folded.model
        self._want = want
        self._columns = columns
        self._anchor = torch.zeros((), requires_grad=True)
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of a chunk, ready for `backward`."""
        self.samples = leading_size(inputs)
        with torch.enable_grad(), slow_attention(), self:
            self._logits = logits_of(call_model(self._model, inputs))
        return self._logits

    def backward(self, cotangent: Tensor, *, last: bool) -> Tensor:
        """Push one logit vector per sample back; return `(N, num_units)` squared norms in float64."""
        self._rows.clear()
        u = cotangent.to(self._logits)
        torch.autograd.grad(self._logits, self._anchor, u, retain_graph=not last, allow_unused=True)
        for name, total in self._sums.items():
            self._take(name, total.square().float() if total.dtype.itemsize < 4 else total.square())
        self._sums.clear()
        return self._want.gather(self._rows)

    def on_call(self, name: str, call: Call, arguments: Arguments) -> Tensor:
        """Run the layer with a tap behind it."""
        x, weight, bias = arguments
        site = _Site(mode=self, name=name, call=call)
        return _Tap.apply(self._anchor.to(x), x, weight, bias, site)

    def arrive(self, site: "_Site", x: Tensor, weight: Tensor, delta: Tensor) -> None:
        """Take a layer's contribution, given its input and the gradient at its output."""
        if site.name in self._want.repeated:
            gradients = site.call.sample_gradients(delta, x, weight)
            self._sums[site.name] = gradients + self._sums[site.name] if site.name in self._sums else gradients
            return
        geometry = geometry_of(site.call, x, weight, delta)
        rows_only = self._want.axes[site.name] == (_output_axis(site.call),)
        if rows_only and geometry is not None and geometry.prefers_gram(self._columns):
            if site.gram is None:
                site.gram = patch_gram(site.call, x, weight)
            norms = gram_norms(site.call, site.gram, delta)
            factor = self._want.factors.get(site.name)
            self._rows[site.name, _output_axis(site.call)] = norms if factor is None else norms * factor.flatten()
            return
        self._take(site.name, site.call.sample_gradients(delta, x, weight).square())

    def _take(self, name: str, squares: Tensor) -> None:
        """Reduce squared gradients `(N, *weight.shape)` along every axis that is asked for."""
        factor = self._want.factors.get(name)
        squares = squares if factor is None else squares * factor
        for axis in self._want.axes[name]:
            self._rows[name, axis] = _sum_but(squares, axis + 1)


@dataclass(kw_only=True)
class _Site:
    """One tapped use of a weight within a chunk."""

    mode: TapMode
    name: str
    call: Call
    gram: Tensor | None = field(default=None, repr=False)


class _Tap(torch.autograd.Function):
    """A layer whose backward pass reports to its mode and returns the input gradient alone.

    The anchor is a zero that asks for a gradient, so that the tap of a first layer, whose input needs none, still runs.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, site: _Site) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x, weight)
        ctx.site = site
        return site.call.forward(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        site: _Site = ctx.site
        site.mode.arrive(site, x, weight, delta)
        gradient = site.call.input_gradient(delta, x, weight) if ctx.needs_input_grad[1] else None
        return None, gradient, None, None, None


def _sum_but(squares: Tensor, axis: int) -> Tensor:
    """Sum `(N, *shape)` over everything but the samples and `axis`."""
    others = [a for a in range(1, squares.dim()) if a != axis]
    return squares.sum(others) if others else squares


def _output_axis(call: Call) -> int:
    return int(call.transposed)
