r"""Hessian–vector products by unit, without forming a weight gradient.

For a probe `v` over the weights, with `ȧ` the change of a layer's input in direction `v` and `δ̇` that of the
gradient at its output,

    v_cᵀ (H v)_c = Σ_{n,t} δ_{n,c,t} (v_c * ȧ)_{n,t} + δ̇_{n,c,t} (v_c * a)_{n,t} ,

where `*` is the layer's own map. Differentiating twice in reverse mode brings `ȧ` to a layer's adjoint and `δ̇` to the
layer itself; taps there add both terms. That takes five maps per layer and probe, none of them a weight gradient. The
graph of the gradient is built once and kept for all probes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hessprune.curvature.ggn import Read, changeable, in_autocast, output_axis
from hessprune.curvature.readout import Readout
from hessprune.errors import UnsupportedModelError
from hessprune.foundation.modules import forward
from hessprune.foundation.trees import leading_size
from hessprune.layers.calls import CallMode, slow_attention, weight_names
from hessprune.layers.folding import Folded
from hessprune.operators.maps import Arguments, Linear, LinearMap


class ProductMode(CallMode):
    """Builds the graph of one chunk's gradient, then computes one product per probe."""

    def __init__(self, folded: Folded, readout: Readout, read: Read) -> None:
        names = {key: name for key, name in weight_names(folded.model).items() if name in readout.axes}
        super().__init__(names, 0, folded.recording.layouts)
        self._model = folded.model
        self._readout = readout
        self._read = read
        self._sites: list[_Site] = []
        self._tokens: list[Tensor] = []
        self._directions: dict[str, Tensor] = {}
        self._rows: dict[tuple[str, int], Tensor] = {}

    def forward(self, inputs: Any) -> Tensor:
        """Return the values of a chunk that count, attached to its graph."""
        self.samples = leading_size(inputs)
        with torch.enable_grad(), slow_attention(), self:
            return self._read(forward(self._model, inputs), self.samples, inputs)

    def differentiate(self, loss: Tensor) -> None:
        """Build the graph of the loss gradient; each layer adds a token in place of its weight gradient."""
        anchors = [site.anchor for site in self._sites]
        with _twice_differentiable():
            tokens = torch.autograd.grad(loss, anchors, create_graph=True, allow_unused=True)
        self._tokens = [token for token in tokens if token is not None and token.requires_grad]

    def product(self, directions: dict[str, Tensor]) -> Tensor:
        """Return `v_uᵀ (H v)_u` for every unit, `(num_units,)` in float64; `directions` holds the probe by weight."""
        self._directions = directions
        self._rows = {
            (name, axis): directions[name].new_zeros(directions[name].shape[axis], dtype=torch.float64)
            for name, axes in self._readout.axes.items()
            for axis in axes
        }
        if self._tokens:
            ones = [torch.ones_like(token) for token in self._tokens]
            anchors = [site.anchor for site in self._sites]
            with _twice_differentiable():
                torch.autograd.grad(self._tokens, anchors, ones, retain_graph=True, allow_unused=True)
        rounds = {key: rows[None] for key, rows in self._rows.items()}
        return self._readout.gather(rounds, torch.zeros(1, device="cpu"))[0]

    def close(self) -> None:
        """Drop the graph, which refers to this object and is referred to by it."""
        self._tokens.clear()
        self._sites.clear()

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Run the layer with taps on both of its derivatives."""
        x, weight, bias = in_autocast(*arguments)
        site = _Site(mode=self, name=name, call=call, anchor=x.new_zeros((), requires_grad=True))
        self._sites.append(site)
        return _Layer.apply(site.anchor, x, weight, bias, site)

    def on_other(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Run another function; a hard sigmoid in the form that torch can differentiate twice."""
        written_out = {"hardsigmoid": _hardsigmoid, "hardsigmoid_": _hardsigmoid_}.get(name.partition(".")[0], func)
        return written_out(*args, **kwargs)

    def direction(self, name: str, weight: Tensor) -> Tensor:
        """Return the current probe over one weight."""
        return self._directions[name].to(weight)

    def by_output(self, name: str, call: LinearMap) -> bool:
        """Return True if the readout of this weight counts output channels only."""
        return self._readout.axes[name] == (output_axis(call),) and getattr(call, "groups", 1) * call.transposed <= 1

    def add_outputs(self, site: "_Site", delta: Tensor, change: Tensor) -> None:
        """Add `Σ δ · change` of each output channel."""
        products = delta.float() * change.float() if delta.dtype.itemsize < 4 else delta * change
        channels = products.dim() - 1 if isinstance(site.call, Linear) else 1
        others = [axis for axis in range(products.dim()) if axis != channels]
        self._rows[site.name, output_axis(site.call)] += products.sum(others)

    def add_entries(self, site: "_Site", gradient: Tensor) -> None:
        """Add the product of the probe and a part of `H v` over a whole weight."""
        products = gradient.double() * self._directions[site.name]
        for axis in self._readout.axes[site.name]:
            self._rows[site.name, axis] += products.sum([a for a in range(products.dim()) if a != axis])


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return _hardsigmoid_(input) if inplace else ((input + 3).clamp(0, 6) / 6)


def _hardsigmoid_(input: Tensor) -> Tensor:
    return input.add_(3).clamp_(0, 6).div_(6)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Turn torch's error about a missing second derivative into one that names the function and the remedy."""
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one, too
        if match := re.search(r"derivative for '?(?:aten::)?(\w+?)'? is not implemented", str(error)):
            raise UnsupportedModelError(
                f"`model` and `loss_fn` must be twice differentiable for Hessian products, but torch has no derivative "
                f"of {match[1].strip('_')!r}. Use method=hp.HAP() or, in hp.hessian_trace, estimator='exact': they "
                "differentiate once."
            ) from error
        raise


@dataclass(kw_only=True)
class _Site:
    """One use of a weight within a chunk."""

    mode: ProductMode
    name: str
    call: LinearMap
    anchor: Tensor
    moved: Tensor | None = field(default=None, repr=False)
    """`v * a`, computed in the adjoint's backward pass for the layer's."""


class _Layer(torch.autograd.Function):
    """A layer: its first differentiation, with a graph, runs `_Adjoint`; the second one adds the term with `δ̇`."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, site: _Site) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x, weight)
        ctx.site = site
        return changeable(site.call.forward(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x, weight), site = ctx.saved_tensors, ctx.site
        needs_input = ctx.needs_input_grad[1]
        if torch.is_grad_enabled():
            gradient, token = _Adjoint.apply(delta, x, weight, site, needs_input)  # type: ignore[misc]
            return token, gradient if needs_input else None, None, None, None
        _meet_outer(site, x, weight, delta)
        return None, site.call.input_gradient(delta, x, weight) if needs_input else None, None, None, None


class _Adjoint(torch.autograd.Function):
    """A layer's backward pass as a function; its own backward pass receives `ȧ` and inserts the probe."""

    @staticmethod
    def forward(
        ctx: Any, delta: Tensor, x: Tensor, weight: Tensor, site: _Site, needs_input: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(delta, x, weight)
        ctx.site = site
        ctx.set_materialize_grads(False)
        token = delta.new_zeros(())
        return (site.call.input_gradient(delta, x, weight) if needs_input else torch.zeros_like(token)), token

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, change: Tensor | None, token: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (delta, x, weight), site = ctx.saved_tensors, ctx.site
        outgoing = None
        if change is not None and change.dim():
            outgoing = _meet_inner(site, change, delta, weight)
        if token is None:
            return outgoing, None, None, None, None
        v = site.mode.direction(site.name, weight)
        site.moved = site.call.forward(x, v, None)
        outgoing = site.moved if outgoing is None else outgoing.add_(site.moved)
        gradient = site.call.input_gradient(delta, x, v) if ctx.needs_input_grad[1] else None
        return outgoing, gradient, None, None, None


def _meet_inner(site: _Site, change: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """Add `Σ δ (v * ȧ)` and return `w * ȧ`; without channel groups both maps run as one."""
    call, v = site.call, site.mode.direction(site.name, weight)
    if not site.mode.by_output(site.name, call):
        site.mode.add_entries(site, call.weight_gradient(delta, change, weight))
        return call.forward(change, weight, None)
    if getattr(call, "groups", 1) == 1:
        both = call.forward(change, torch.cat([weight, v], output_axis(call)), None)
        onward, tangent = both.chunk(2, -1 if isinstance(call, Linear) else 1)
    else:
        onward, tangent = call.forward(change, weight, None), call.forward(change, v, None)
    site.mode.add_outputs(site, delta, tangent)
    return onward


def _meet_outer(site: _Site, x: Tensor, weight: Tensor, delta: Tensor) -> None:
    """Add `Σ δ̇ (v * a)`."""
    if not site.mode.by_output(site.name, site.call):
        site.mode.add_entries(site, site.call.weight_gradient(delta, x, weight))
        return
    moved = site.moved
    if moved is None:  # the loss gradient at this layer does not depend on the layer
        moved = site.call.forward(x, site.mode.direction(site.name, weight), None)
    site.mode.add_outputs(site, delta, moved)
    site.moved = None
