"""From a float model to integers: prepare, calibrate, train, convert."""

import copy
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.fx import GraphModule, Node

from hessprune.deploy.export import batch_axes, capture, resized
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.checks import (
    check_batches,
    check_choice,
    check_finite_parameters,
    check_range,
    nearest,
    optional_import,
)
from hessprune.foundation.modules import device_of, predict, split_name
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import leading_size, to_device
from hessprune.operators.table import integer_kind
from hessprune.quantize.graph import activation_quantizers, run_all, weights_read
from hessprune.quantize.model import QuantizedModel, quantized
from hessprune.quantize.rewrite import WEIGHT_AXES, layer_name, rewrite
from hessprune.quantize.rounding import round_weights
from hessprune.quantize.targets import Target, check_target

if TYPE_CHECKING:
    from hessprune.quantize.ranges import ActivationQuantizer, Watch


def prepare_qat(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: Target = "onnxruntime",
    activations: Literal["asymmetric", "symmetric"] = "asymmetric",
    weight_bits: Literal[7, 8] = 7,
    keep_fp32: Sequence[str] | Mapping[str, str] = (),
) -> QuantizedModel:
    """Return a copy of `model` in which weights and activations are rounded to the grid of INT8.

    Weights are symmetric with one scale per output channel, biases int32, activations have one scale per tensor.
    BatchNorm is folded into the layers beforehand, so that what is trained is what will run. The graph is captured for
    any batch size. Quantisers are placed where `target` can fuse; what it has no integer kernel for stays in FP32 and
    is listed in `.fp32_layers`.

    Args:
        model: Any float model that `torch.export` captures; stays untouched.
        example_inputs: A tensor, tuple or dict.
        target: `"onnxruntime"`; `"x86-inductor"` for `torch.compile`; `"openvino"`, placed as for ONNX Runtime.
        activations: `"asymmetric"`: uint8 with a zero point. `"symmetric"`: int8 around zero, for engines that want it;
            ONNX Runtime then keeps every ReLU in floats.
        weight_bits: On x86 CPUs without VNNI the integer kernels add two products in 16 bits, which overflows with
            8-bit weights and never with 7. 8 is exact on CPUs with VNNI, on ARM and on GPUs.
        keep_fp32: Patterns of the names of layers that stay in FP32, if with reasons: as a mapping. What
            `choose_fp32_layers` returns is one.

    Returns:
        The prepared model, in evaluation mode; `calibrate` it next.

    Raises:
        ArgumentError: A choice is unknown, a pattern matches no layer, or the model is quantised already.
        DataError: The example does not fit the model.
        MissingDependencyError: torchao or the target is not installed.
        NumericalError: Weights are not finite.
        UnsupportedModelError: The model cannot be captured, or has no layer to quantise.

    References:
        Chong, Gupta and Chen (2023), Resource-efficient quantized deep learning via Hessian-aware pruning,
            arXiv:2306.07030.
        Jacob et al. (2018), Quantization and training of neural networks for efficient integer-arithmetic-only
            inference, arXiv:1712.05877, Section 3.

    Example:
        >>> prepared = prepare_qat(nn.Linear(4, 2), torch.zeros(1, 4))
        >>> calibrated = calibrate(prepared, [(torch.randn(64, 4), None)])
        >>> convert_qat(calibrated).stage
        'converted'
    """
    check_choice("activations", activations, ("asymmetric", "symmetric"))
    check_range("weight_bits", weight_bits, low=7, high=8, integer=True)
    _check_float(model)
    check_target(target)
    torchao = _torchao()
    with evaluation_mode(model), seeded(0), torch.no_grad(), progress_bar("preparing for INT8", 2) as bar:
        graph = _float_graph(copy.deepcopy(model), to_device(example_inputs, device_of(model)))
        bar.advance(1, "captured")
        kept = _kept_layers(graph, keep_fp32)
        left = _fp32_layers(graph, kept)
        quantizer = _quantizer(target, activations, weight_bits, list(kept))
        with quiet():
            prepared = torchao.prepare_qat_pt2e(graph, quantizer)
        if not activation_quantizers(prepared):
            raise UnsupportedModelError(
                f"`target` must find layers that it can quantise, got none for {target!r} with torch "
                f"{torch.__version__}. Use target='onnxruntime', or a newer torch."
            )
        bar.advance(1, "placed")
    return quantized(prepared, stage="prepared", target=target, fp32_layers=left)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: Literal["mse", "minmax"] = "mse",
    rounding: Literal["second-order", "nearest"] = "second-order",
) -> QuantizedModel:
    """Return a copy of a prepared model whose activation ranges and rounded weights fit `batches`.

    With h the histogram of the values that a quantiser q sees, `"mse"` takes the range [a, b] with the least
    `Σ h(x)·(q(x) − x)²`, among shares of the observed range; `"minmax"` takes the observed range itself. Values pass
    unrounded meanwhile.

    Weights are then put on their grids. With ΔW the change of a layer's weights and G the Gram matrix of its inputs,
    the Hessian of the squared error of its outputs, `"second-order"` keeps `tr(ΔW G ΔWᵀ)` small: the error of each
    weight is made up for by the weights not yet rounded. `"nearest"` leaves the weights to their quantisers.

    Three passes over the data, one less for `"minmax"` and for `"nearest"` each; more for very wide layers. That is all
    there is to post-training quantisation; `finetune` is better.

    Args:
        model: What `prepare_qat` returned.
        batches: Re-iterable of (inputs, targets); some hundred samples do. The targets are not read.
        method: How the ranges of activations are chosen.
        rounding: How weights are rounded.

    Returns:
        A new prepared model, in evaluation mode.

    Raises:
        ArgumentError: The model is not a prepared one, or a choice is unknown.
        DataError: The batches are empty or one-shot, or do not fit the model.

    References:
        Frantar, Ashkboos, Hoefler and Alistarh (2023), GPTQ: accurate post-training quantization for generative
            pre-trained transformers, arXiv:2210.17323, Section 3.3.

    Example:
        >>> layer, x = nn.Linear(4, 2), torch.linspace(-1, 1, 256).reshape(64, 4)
        >>> calibrated = calibrate(prepare_qat(layer, x), [(x, None)])
        >>> torch.allclose(calibrated(x), layer(x), atol=0.05)
        True
    """
    model = _prepared(model, "Call hp.prepare_qat first, and hp.convert_qat last.")
    check_choice("method", method, ("mse", "minmax"))
    check_choice("rounding", rounding, ("second-order", "nearest"))
    check_batches(batches)
    from hessprune.quantize.ranges import Extremes, Histogram  # needs torchao, which made the model

    model = copy.deepcopy(model).eval()
    quantizers = activation_quantizers(model)
    extremes = {quantizer: Extremes() for quantizer in quantizers.values()}
    _watch(model, batches, extremes)
    ranges = {quantizer: (seen.low, seen.high) for quantizer, seen in extremes.items()}
    if method == "mse":
        histograms = {quantizer: Histogram(seen) for quantizer, seen in extremes.items()}
        _watch(model, batches, histograms)
        ranges = {quantizer: seen.best_range(quantizer) for quantizer, seen in histograms.items()}
    for quantizer, (low, high) in ranges.items():
        quantizer.set_range(low, high)
    if rounding == "second-order":
        round_weights(model, batches)
    return model


def convert_qat(model: nn.Module) -> QuantizedModel:
    """Return a copy of a prepared model with integer weights, ready for `export_onnx` (or `torch.compile`).

    It computes in the integers that ONNX Runtime computes in, bit for bit on x86 with AVX2, and returns what the
    prepared model returns in evaluation mode, up to the rounding of biases and of values midway between two steps.

    Args:
        model: Calibrated or trained.

    Returns:
        The converted model, in evaluation mode.

    Raises:
        ArgumentError: The model is not a prepared one, or an activation was never calibrated.

    Example:
        >>> batches = [(torch.randn(64, 4), None)]
        >>> int8 = convert_qat(calibrate(prepare_qat(nn.Linear(4, 2), torch.zeros(1, 4)), batches))
        >>> sorted({str(value.dtype) for value in int8.state_dict().values()} & {"torch.int8", "torch.float32"})
        ['torch.float32', 'torch.int8']
    """
    model = _prepared(model, "Pass what hp.prepare_qat returned.")
    missing = [name for name, quantizer in activation_quantizers(model).items() if not quantizer.is_calibrated]
    if missing:
        raise ArgumentError(
            f"activations must be calibrated before conversion, got {len(missing)} without a range, in {missing[0]!r} "
            "first. Call hp.calibrate(model, batches), or train it."
        )
    model = copy.deepcopy(model).eval()
    for quantizer, weight in weights_read(model):
        quantizer(weight)  # which sets its scale
    with quiet():
        converted = _torchao().convert_pt2e(model)
    return quantized(converted, stage="converted", target=model.target, fp32_layers=model.fp32_layers)


def _float_graph(model: nn.Module, example: Any) -> GraphModule:
    """Capture a model for any batch size, with everything that has an integer counterpart turned into that."""
    predict(model, example, "example_inputs")
    traced = resized(example, 2) if leading_size(example) == 1 else example
    graph = capture(model, traced, batch_axes(traced)).module()
    assert isinstance(graph, GraphModule)
    rewrite(graph)
    return graph


def _quantizer(target: str, activations: str, weight_bits: int, kept: Sequence[str]) -> Any:
    """Return what tells torchao where to quantise, and how."""
    with quiet():
        from hessprune.quantize import quantizer, ranges  # they need torchao

        activation, weight = ranges.activation_spec(activations), ranges.weight_specs(weight_bits)
        if target == "x86-inductor":
            return quantizer.inductor_quantizer(activation, weight[0], kept)
        return quantizer.FusionQuantizer(activation, weight, kept)


def _kept_layers(graph: GraphModule, patterns: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the layers that patterns name, each with the reason."""
    if isinstance(patterns, str):
        raise ArgumentError(
            f"`keep_fp32` must be a list of patterns, got {patterns!r}. Write [{patterns!r}], or pass what "
            "hp.choose_fp32_layers(model, example_inputs, batches) returns."
        )
    names = list(
        dict.fromkeys(layer_name(node) for node in graph.graph.nodes if integer_kind(node.target) in WEIGHT_AXES)
    )
    kept: dict[str, str] = {}
    for pattern in patterns:
        named = fnmatch.filter(names, pattern)
        if not named:
            raise ArgumentError(
                f"`keep_fp32` must name layers of the model, got {pattern!r}.{nearest(pattern, names)} "
                f"Known: {', '.join(names)}."
            )
        reason = patterns[pattern] if isinstance(patterns, Mapping) else "kept on request"
        kept = dict.fromkeys(named, reason) | kept
    return {name: kept[name] for name in names if name in kept}


def _fp32_layers(graph: GraphModule, kept: Mapping[str, str]) -> dict[str, str]:
    """Return the layers that stay as they are, with the reason."""
    left = dict(kept)
    names = {name for name, _ in graph.named_parameters(remove_duplicate=False)}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target in names:
            for user in node.users:
                if integer_kind(user.target) not in WEIGHT_AXES:
                    left.setdefault(split_name(node.target)[0], f"no integer kernel for {_operator_name(user)}")
    layers = [node for node in graph.graph.nodes if integer_kind(node.target) in WEIGHT_AXES]
    if all(layer_name(node) in left for node in layers):
        raise UnsupportedModelError(
            "`model` must have a convolution or linear layer to quantise, got none that is not kept in FP32."
        )
    return left


def _operator_name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _watch(model: nn.Module, batches: Iterable[Any], watches: "Mapping[ActivationQuantizer, Watch]") -> None:
    """Run the batches while values pass the quantisers unrounded, each seen by its watch."""
    for quantizer, watch in watches.items():
        quantizer.watch = watch
    run_all(model, batches, "calibrating")
    for quantizer in watches:
        quantizer.watch = None


def _check_float(model: nn.Module) -> None:
    if any(isinstance(module, QuantizedModel) for module in model.modules()):
        raise ArgumentError("`model` must be a float model, got one that is quantised already. Pass the one before.")
    check_finite_parameters(model)


def _prepared(model: nn.Module, remedy: str) -> QuantizedModel:
    """Return the model if it is a prepared one."""
    if isinstance(model, QuantizedModel) and model.stage == "prepared":
        return model
    found = model.stage if isinstance(model, QuantizedModel) else type(model).__name__
    raise ArgumentError(f"`model` must be a prepared model, got a {found} one. {remedy}")


def _torchao() -> Any:
    with quiet():
        return optional_import("torchao.quantization.pt2e.quantize_pt2e", "quantize")
