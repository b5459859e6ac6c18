"""What rounding each layer to INT8 costs, and which layers had better stay in FP32."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_map

from hessprune.curvature import ParamSlice, TraceOptions, block_traces
from hessprune.foundation.batches import Pairs
from hessprune.foundation.checks import check_choice
from hessprune.foundation.modules import device_of, predict
from hessprune.foundation.progress import track
from hessprune.foundation.state import seeded
from hessprune.foundation.trees import tensors_in, to_device
from hessprune.operators.table import integer_kind
from hessprune.quantize.config import Scheme
from hessprune.quantize.graph import Use, quantizer_of, spying, uses
from hessprune.quantize.model import QuantizedModel
from hessprune.quantize.qat import calibrate, prepare_qat

NUM_PROBES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSensitivity:
    """Loss increase, in nats, if a layer alone is rounded: of its weights, and of the values it reads and returns.

    Operands and results of additions, products and means count for no layer: they are integers whatever the layers are.
    """

    weights: float
    activations: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.weights + self.activations


def quantization_sensitivity(
    model: nn.Module,
    example_inputs: Any,
    batches: Iterable[Any],
    *,
    method: Literal["curvature", "trace", "measured"] = "curvature",
    scheme: Scheme | None = None,
    dynamic_length: bool = False,
) -> dict[str, LayerSensitivity]:
    """Estimate how much the loss rises if one layer after the other is rounded to INT8.

    The loss is the cross-entropy against the float model's own predictions, mean over samples: labels are not read,
    and the increase is the divergence `KL(p ‖ p')`, whose gradient is zero at the float model. `"curvature"` takes
    its second-order term. With H the Hessian of the loss in a layer's outputs y, `ΔW` the rounding of its weights and
    `Δx` that of a value x,

        weights = ½ E[(ΔW x)ᵀ H (ΔW x)],    activations = Σ_x ½ E[Δxᵀ H Δx].

    `H = JᵀSSᵀJ`, with S the factor of the loss Hessian in the logits, is probed by `vᵀSᵀJ` for random signs v: one
    backward pass per batch and probe gives all layers at once. `"trace"` is HAWQ's shorter form for weights that are
    rounded to the nearest, `½ Σ_c Tr(H_cc)/numel(w_c) · ‖Δw_c‖²` over output channels c, at one more backward pass per
    batch and probe; what second-order rounding spares it cannot see. `"measured"` rounds each layer by itself: two
    passes over the data per layer.

    Args:
        model: A float model; stays untouched.
        example_inputs: A tensor, tuple or dict.
        batches: Re-iterable of (inputs, targets); some hundred samples do.
        method: Estimate, by either form, or measure.
        scheme: The grids, those of `prepare_qat` by default.
        dynamic_length: Whether batches differ in length, as for `prepare_qat`.

    Returns:
        One entry per layer, the most sensitive first. A value between two layers counts for both.

    Raises:
        ArgumentError: A choice is unknown, or the model is quantised already.
        DataError: The example or the batches do not fit the model.
        MissingDependencyError: torchao or ONNX Runtime is not installed.
        NumericalError: Weights are not finite.
        UnsupportedModelError: The model cannot be captured, or has no layer to quantise.

    References:
        Dong et al. (2020), HAWQ-V2: Hessian aware trace-weighted quantization of neural networks, arXiv:1911.03852,
            eq. 9.

    Example:
        >>> import torch, hessprune as hp
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(64, 4)
        >>> found = hp.quantization_sensitivity(model, x, [(x, None)])
        >>> sorted(found), all(0 < layer.total < 1e-3 for layer in found.values())
        (['0', '2'], True)
    """
    check_choice("method", method, ("curvature", "trace", "measured"))
    with torch.inference_mode(False):
        prepared = prepare(model, example_inputs, scheme, dynamic_length=dynamic_length)
        return _estimated(prepared, Pairs(batches, model), method)


def _estimated(prepared: QuantizedModel, batches: Iterable[Any], method: str) -> dict[str, LayerSensitivity]:
    """Estimate the sensitivities of a prepared model's layers, the most sensitive first."""
    with_ranges = calibrate(prepared, batches, rounding="nearest")
    rounded = with_ranges if method == "trace" else calibrate(prepared, batches)
    layers = [_Layer(use, *_weights(use, with_ranges, rounded)) for use in uses(with_ranges)]
    _let_pass(with_ranges)
    compute = {"curvature": _by_curvature, "trace": _by_traces, "measured": _by_measuring}[method]
    found = compute(with_ranges, layers, batches)
    return dict(sorted(found.items(), key=lambda item: -item[1].total))


def prepare(
    model: nn.Module,
    example_inputs: Any,
    scheme: Scheme | None,
    kept: Mapping[str, str] | None = None,
    *,
    dynamic_length: bool,
) -> QuantizedModel:
    """Call `prepare_qat` with a scheme."""
    scheme = scheme or Scheme()
    return prepare_qat(
        model,
        example_inputs,
        target=scheme.target,
        activations=scheme.activations,
        weight_bits=scheme.weight_bits,
        keep_fp32=kept or (),
        dynamic_length=dynamic_length,
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    """One use of a weight, the weight before rounding, and what rounding adds to it."""

    use: Use
    weight: Tensor
    change: Tensor


def _weights(use: Use, before: QuantizedModel, after: QuantizedModel) -> tuple[Tensor, Tensor]:
    """Return a weight of one graph, and how the same weight differs in the other, rounded."""
    weight, rounded = (operator.attrgetter(use.param)(model).detach() for model in (before, after))
    return weight, use.weight(rounded) - weight


def _let_pass(model: nn.Module) -> None:
    """Switch all rounding off."""
    from hessprune.quantize.ranges import FakeQuantizer  # needs torchao, which made the model

    for module in model.modules():
        if isinstance(module, FakeQuantizer):
            module.rounds = False


def _by_curvature(model: QuantizedModel, layers: list[_Layer], batches: Iterable[Any]) -> dict[str, LayerSensitivity]:
    """Probe the curvature at the outputs of all layers, and at all quantised values."""
    probe = _Probe()
    values = {node: None for layer in layers for node in layer.use.values}
    views = {layer.use.node: partial(probe.see_layer, layer) for layer in layers}
    views |= {node: partial(probe.see_value, node, quantizer_of(model, node)) for node in values}
    model.requires_grad_(requires_grad=True)
    with seeded(0), spying(model, views), torch.enable_grad():
        for inputs, _ in track(batches, "probing"):
            probe.run(model, to_device(inputs, device_of(model)))
    return _by_layer(layers, {key: 0.5 * cost / (NUM_PROBES * probe.count) for key, cost in probe.costs.items()})


def _by_traces(model: QuantizedModel, layers: list[_Layer], batches: Iterable[Any]) -> dict[str, LayerSensitivity]:
    """Take the weights' part from the trace of every output channel, the values' part from the probes."""
    found = _by_curvature(model, layers, batches)
    weights = {layer.use.param: layer for layer in layers if integer_kind(layer.use.node.target) == "layer"}
    slices = {
        name: [ParamSlice(param=name, dim=0, index=torch.arange(len(layer.weight), device="cpu")[:, None])]
        for name, layer in weights.items()
    }
    options = TraceOptions(num_probes=NUM_PROBES)
    traces = block_traces(model, slices, batches, estimator="rademacher", options=options).values
    sums = dict.fromkeys(found, 0.0)
    for name, layer in weights.items():
        squares = layer.change.double().flatten(1).square().mean(1).cpu()  # ‖Δw_c‖² / numel(w_c)
        sums[layer.use.layer] += 0.5 * float(traces[name] @ squares)
    return {name: LayerSensitivity(weights=sums[name], activations=found[name].activations) for name in found}


def _by_layer(layers: list[_Layer], costs: Mapping[Node, float]) -> dict[str, LayerSensitivity]:
    """Sum over the uses of a layer; a value that several uses share counts once."""
    names = dict.fromkeys(layer.use.layer for layer in layers)
    own = {name: [layer.use for layer in layers if layer.use.layer == name] for name in names}
    return {
        name: LayerSensitivity(
            weights=sum(costs.get(use.node, 0.0) for use in same),
            activations=sum(costs.get(node, 0.0) for node in {node for use in same for node in use.values}),
        )
        for name, same in own.items()
    }


class _Probe:
    """Sums `(vᵀSᵀJ Δ)²` over samples and probes, for a change Δ at every layer's output and every value."""

    def __init__(self) -> None:
        self.costs: dict[Node, float] = {}
        self.count = 0

    def see_layer(self, layer: _Layer, out: Tensor, x: Tensor) -> None:
        """Follow a change of weights."""
        with torch.no_grad():
            self._follow(layer.use.node, out, layer.use.run(x, layer.change))

    def see_value(self, node: Node, quantizer: Any, _: Tensor, x: Tensor) -> None:
        """Follow the rounding of a value."""
        with torch.no_grad():
            self._follow(node, x, quantizer.rounded(x, quantizer.low, quantizer.high) - x)

    def run(self, model: nn.Module, inputs: Any) -> None:
        """Take in a batch."""
        inputs = tree_map(_leaf, inputs)
        logits = predict(model, inputs)
        self.count += logits.numel() // logits.shape[1]
        anchors = [leaf for leaf in (*model.parameters(), *tensors_in(inputs)) if leaf.requires_grad]
        p = logits.detach().softmax(1)
        for _ in range(NUM_PROBES):
            v = 2 * torch.randint_like(p, 2) - 1
            direction = p.sqrt() * v - p * (p.sqrt() * v).sum(1, keepdim=True)  # S v, S = diag(√p) − p √pᵀ
            direction = v if p.shape[1] == 1 else direction  # a number, not a class
            torch.autograd.grad(logits, anchors, direction, retain_graph=True, allow_unused=True)

    def _follow(self, node: Node, tensor: Tensor, change: Tensor) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self._add(node, gradient, change))

    def _add(self, node: Node, gradient: Tensor, change: Tensor) -> None:
        self.costs[node] = self.costs.get(node, 0.0) + float(
            (gradient * change).flatten(1).sum(1).double().square().sum()
        )


def _leaf(value: Any) -> Any:
    """Copy a tensor of floats so that gradients reach it."""
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if is_float else value


@torch.no_grad()
def _by_measuring(model: QuantizedModel, layers: list[_Layer], batches: Iterable[Any]) -> dict[str, LayerSensitivity]:
    """Round one layer at a time, its weights first, then its values too."""
    reference = _log_probabilities(model, batches)
    names = dict.fromkeys(layer.use.layer for layer in layers)
    found = {}
    for name in track(list(names), "measuring sensitivity"):
        own = [layer for layer in layers if layer.use.layer == name]
        around = {quantizer_of(model, node) for layer in own for node in layer.use.values}
        quantizers = [quantizer for quantizer in around if quantizer is not None]
        changes = {layer.use.param: layer for layer in own}.values()
        for layer in changes:
            layer.weight.add_(layer.change)
        weights = _divergence(reference, _log_probabilities(model, batches))
        for quantizer in quantizers:
            quantizer.rounds = True
        both = _divergence(reference, _log_probabilities(model, batches))
        for quantizer in quantizers:
            quantizer.rounds = False
        for layer in changes:
            layer.weight.sub_(layer.change)
        found[name] = LayerSensitivity(weights=weights, activations=both - weights)
    return found


def _log_probabilities(model: nn.Module, batches: Iterable[Any]) -> list[Tensor]:
    with seeded(0):
        outputs = [predict(model, to_device(x, device_of(model))).double() for x, _ in batches]
    return [each if each.shape[1] == 1 else each.log_softmax(1) for each in outputs]


def _divergence(reference: list[Tensor], found: list[Tensor]) -> float:
    """Return the mean of `KL(p ‖ p')` over samples and positions; of half the squared error of single numbers."""
    pairs = [*zip(reference, found, strict=True)]
    one = reference[0].shape[1] == 1
    total = sum(float((p - q).square().sum() / 2 if one else (p.exp() * (p - q)).sum()) for p, q in pairs)
    return total / sum(p.numel() // p.shape[1] for p in reference)
