"""Quantise a float model: prepare it, calibrate or train it, and convert it to integers."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.fx import GraphModule

from hessprune.deploy.axes import Axes, resized
from hessprune.deploy.export import capture
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.arguments import as_given
from hessprune.foundation.arrival import arrived
from hessprune.foundation.checks import (
    check_batches,
    check_choice,
    check_finite_parameters,
    optional_import,
)
from hessprune.foundation.formatting import first_line, shown
from hessprune.foundation.modules import device_of, predict
from hessprune.foundation.parametrised import check_plain_weights
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import leading_size, to_device
from hessprune.foundation.wrappers import unwrapped
from hessprune.quantize.backend import find_backend
from hessprune.quantize.float_layers import fp32_layers_of, kept_layers
from hessprune.quantize.graph import activation_quantizers, run_all, weights_read
from hessprune.quantize.model import QuantizedModel, quantized
from hessprune.quantize.rewrite import rewrite
from hessprune.quantize.rounding import round_weights
from hessprune.quantize.sizes import Sizes, accepted_sizes

if TYPE_CHECKING:
    from hessprune.quantize.ranges import ActivationQuantizer, Statistic


@torch.inference_mode(False)
def prepare_qat(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: str = "onnxruntime",
    activations: Literal["asymmetric", "symmetric"] = "asymmetric",
    weight_bits: Literal[7, 8] = 7,
    keep_fp32: Sequence[str] | Mapping[str, str] = (),
    dynamic_length: bool = False,
) -> QuantizedModel:
    """Return a copy of `model` in which weights and activations are rounded to the grids of INT8.

    Weights have one scale per output channel and no zero point, activations one scale per tensor; biases are int32.
    BatchNorm is folded into the layers first, and weights that are computed from parameters become parameters, so that
    training sees the weights that will run. The graph accepts any batch size, and any size of images for which it
    computes what the model does. Quantisers stand where `target` can fuse operators into integer kernels. Layers
    without such a kernel stay in FP32, and `.fp32_layers` lists them.

    Cost: an export and a copy of the model; no data are read.

    Args:
        model: Any float model that `torch.export` captures; stays untouched.
        example_inputs: A tensor, tuple or dict.
        target: The backend: `"onnxruntime"`; `"x86-inductor"` for `torch.compile`; `"openvino"`, with the quantisers
            in the places of ONNX Runtime; or one that you add in `quantize/backends/`.
        activations: `"asymmetric"`: uint8 with a zero point. `"symmetric"`: int8 around zero, for engines that need it;
            ONNX Runtime then computes every ReLU in floats.
        weight_bits: The integer kernels of x86 CPUs without VNNI add two products in 16 bits; these sums overflow with
            8-bit weights and never with 7 bits. 8 bits are exact on CPUs with VNNI, on ARM and on GPUs.
        keep_fp32: Patterns of the names of layers that stay in FP32, or a mapping of patterns to reasons, such as the
            result of `choose_fp32_layers`.
        dynamic_length: Accept sequences of any length, as `export_onnx` does; else only those of the example's.

    Returns:
        The prepared model, in evaluation mode; `calibrate` it next.

    Raises:
        ArgumentError: A choice is unknown, a pattern matches no layer, or the model is already quantised
            or not in float32.
        DataError: The example does not fit the model.
        MissingDependencyError: torchao or the target is not installed.
        NumericalError: Weights are not finite.
        UnsupportedModelError: The model cannot be captured, has no layer to quantise, or `target` cannot annotate it.

    References:
        Chong, Gupta and Chen (2023), Resource-efficient quantized deep learning via Hessian-aware pruning,
            arXiv:2306.07030.
        Jacob et al. (2018), Quantization and training of neural networks for efficient integer-arithmetic-only
            inference, arXiv:1712.05877, Section 3.

    Example:
        >>> import torch, hessprune as hp
        >>> prepared = hp.prepare_qat(torch.nn.Linear(4, 2), torch.zeros(1, 4))
        >>> calibrated = hp.calibrate(prepared, [(torch.randn(64, 4), None)])
        >>> hp.convert_qat(calibrated).stage
        'converted'
    """
    backend = find_backend(target)
    backend.check_grids(activations, weight_bits)
    plain = arrived(model)
    check_plain_weights(model)
    _check_float(plain)
    backend.check_installed()
    _torchao()
    with evaluation_mode(plain), seeded(0), torch.no_grad(), progress_bar("preparing for INT8", 2) as bar:
        example = to_device(example_inputs, device_of(plain))
        graph, sizes = _float_graph(copy.deepcopy(plain), example, Axes(length=dynamic_length))
        bar.advance(1, "captured")
        kept = kept_layers(graph, keep_fp32)
        fp32_layers = fp32_layers_of(graph, kept)
        with quiet():
            quantizer = backend.make_quantizer(activations, weight_bits, list(kept))
        prepared = _place(graph, quantizer, target)
        bar.advance(1, "placed")
    return quantized(prepared, stage="prepared", target=target, fp32_layers=fp32_layers, sizes=sizes)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: Literal["mse", "minmax"] = "mse",
    rounding: Literal["second-order", "nearest"] = "second-order",
) -> QuantizedModel:
    """Return a copy of a prepared model whose activation ranges and rounded weights fit `batches`.

    Let h be the histogram of the values that a quantiser q reads, summed over all samples and positions. `"mse"` takes
    the range with the least `Σ h(x)·(q(x) − x)²` among shares of the observed range; `"minmax"` takes the observed
    range. During these passes the quantisers do not round.

    The weights are rounded next. Let ΔW be the change of a layer's weights and `G = Σ x xᵀ` the Gram matrix of its
    inputs: the Hessian of the summed squared error of its outputs, without the factor 2. `"second-order"` keeps
    `tr(ΔW G ΔWᵀ)` small: the weights that are not yet rounded compensate the error of each rounded weight. `"nearest"`
    leaves the rounding to the quantisers of the weights.

    Cost: three passes over the data, one less for `"minmax"`, one less for `"nearest"`, and more for very wide layers.
    Calibration alone is post-training quantisation; `finetune` gives better accuracy.

    Args:
        model: The result of `prepare_qat`.
        batches: Re-iterable of (inputs, targets); a few hundred samples suffice. Targets are not read.
        method: Choice of the activation ranges.
        rounding: Rounding of the weights.

    Returns:
        A new prepared model, in evaluation mode.

    Raises:
        ArgumentError: The model is not prepared, or a choice is unknown.
        DataError: The batches are empty or one-shot, or do not fit the model.

    References:
        Frantar, Ashkboos, Hoefler and Alistarh (2023), GPTQ: accurate post-training quantization for generative
            pre-trained transformers, arXiv:2210.17323, Section 3.3.

    Example:
        >>> import torch, hessprune as hp
        >>> layer, x = torch.nn.Linear(4, 2), torch.linspace(-1, 1, 256).reshape(64, 4)
        >>> calibrated = hp.calibrate(hp.prepare_qat(layer, x), [(x, None)])
        >>> torch.allclose(calibrated(x), layer(x), atol=0.05)
        True
    """
    model = _prepared(model, "Pass hp.prepare_qat(model, example_inputs).")
    check_choice("method", method, ("mse", "minmax"))
    check_choice("rounding", rounding, ("second-order", "nearest"))
    check_batches(batches)
    from hessprune.quantize.ranges import Extremes, Histogram  # needs torchao, which made the model

    model = copy.deepcopy(model).eval()
    quantizers = activation_quantizers(model)
    extremes = {quantizer: Extremes() for quantizer in quantizers.values()}
    _observe(model, batches, extremes)
    ranges = {quantizer: (observed.low, observed.high) for quantizer, observed in extremes.items()}
    if method == "mse":
        histograms = {quantizer: Histogram(observed) for quantizer, observed in extremes.items()}
        _observe(model, batches, histograms)
        ranges = {quantizer: histogram.best_range(quantizer) for quantizer, histogram in histograms.items()}
    for quantizer, (low, high) in ranges.items():
        quantizer.set_range(low, high)
    if rounding == "second-order":
        round_weights(model, batches)
    return model


def convert_qat(model: nn.Module) -> QuantizedModel:
    """Return a copy of a prepared model with integer weights, ready for `export_onnx` or `torch.compile`.

    The copy computes the integers of ONNX Runtime, bit for bit on x86 with AVX2. Its outputs are those of the prepared
    model in evaluation mode, except for the rounding of biases and of values midway between two steps. A model for
    `"x86-inductor"` runs its graph in floats instead, for `torch.compile`.

    Args:
        model: A prepared model, calibrated or trained.

    Returns:
        The converted model, in evaluation mode.

    Raises:
        ArgumentError: The model is not prepared, or an activation was never calibrated.

    Example:
        >>> import torch, hessprune as hp
        >>> prepared = hp.prepare_qat(torch.nn.Linear(4, 2), torch.zeros(1, 4))
        >>> int8 = hp.convert_qat(hp.calibrate(prepared, [(torch.randn(64, 4), None)]))
        >>> sorted({str(value.dtype) for value in int8.state_dict().values()} & {"torch.int8", "torch.float32"})
        ['torch.float32', 'torch.int8']
    """
    model = _prepared(model, "Pass the model that hp.calibrate or hp.finetune returned.")
    missing = [name for name, quantizer in activation_quantizers(model).items() if not quantizer.is_calibrated]
    if missing:
        raise ArgumentError(
            f"activations must be calibrated before conversion, got {len(missing)} without a range, in {missing[0]!r} "
            "first. Call hp.calibrate(model, batches)."
        )
    model = copy.deepcopy(model).eval()
    for quantizer, weight in weights_read(model):
        quantizer(weight)  # sets the scale
    with quiet():
        converted = _torchao().convert_pt2e(model)
    facts = {"target": model.target, "fp32_layers": model.fp32_layers, "sizes": model.sizes}
    return quantized(converted, stage="converted", **facts)


def _float_graph(model: nn.Module, example: Any, axes: Axes) -> tuple[GraphModule, dict[int | str, list[Sizes]]]:
    """Capture a model for any size of some axes, and replace operators by equivalents with an integer kernel.

    Returns:
        The graph, and the sizes that it accepts.
    """
    predict(model, example, "example_inputs")
    example = as_given(model, example)
    traced = resized(example, 2) if leading_size(example) == 1 else example
    remedy = "Remove data-dependent Python and fixed batch sizes from its forward."
    graph = capture(model, traced, axes.of(traced), remedy=remedy).module()
    assert isinstance(graph, GraphModule)
    rewrite(graph)
    return graph, accepted_sizes(model, graph, traced, axes)


def _place(graph: GraphModule, quantizer: Any, target: str) -> GraphModule:
    """Insert quantisers into a graph where the quantizer of a backend annotates it."""
    other = "" if target == "onnxruntime" else "target='onnxruntime', or "
    remedy = f"with torch {torch.__version__}. Use {other}a newer torch."
    try:
        with quiet():
            prepared = _torchao().prepare_qat_pt2e(graph, quantizer)
    except NotImplementedError as error:  # torchao's own quantizers raise it for graphs that they cannot partition
        reason = first_line(error)
        raise UnsupportedModelError(
            f"`target` must support the model, got {shown(target)}: {reason}, {remedy}"
        ) from error
    if not activation_quantizers(prepared):
        raise UnsupportedModelError(f"`target` must find layers that it can quantise, got none for {target!r} {remedy}")
    return prepared


def _observe(model: nn.Module, batches: Iterable[Any], statistics: "Mapping[ActivationQuantizer, Statistic]") -> None:
    """Run all batches without rounding, and update one statistic per quantiser with the values that it reads."""
    for quantizer, statistic in statistics.items():
        quantizer.statistic = statistic
    run_all(model, batches, "calibrating")
    for quantizer in statistics:
        quantizer.statistic = None


def _check_float(model: nn.Module) -> None:
    if any(isinstance(module, QuantizedModel) for module in model.modules()):
        raise ArgumentError(
            "`model` must be a float model, got one that is quantised already. Pass the model before hp.prepare_qat."
        )
    for name, value in model.named_parameters():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ArgumentError(
                f"`model` must have float32 weights to be prepared for INT8, got {value.dtype} in {name!r}. Call "
                "model.float() first, and pass float32 inputs."
            )
    check_finite_parameters(model)


def _prepared(model: nn.Module, remedy: str) -> QuantizedModel:
    """Return the model if it is prepared, else raise."""
    model = unwrapped(model)
    if isinstance(model, QuantizedModel) and model.stage == "prepared":
        return model
    kind = model.stage if isinstance(model, QuantizedModel) else type(model).__name__
    raise ArgumentError(f"`model` must be a prepared model, got a {kind} one. {remedy}")


def _torchao() -> Any:
    with quiet():
        return optional_import("torchao.quantization.pt2e.quantize_pt2e", "quantize")
