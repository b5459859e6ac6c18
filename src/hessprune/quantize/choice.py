"""Which layers stay in FP32: the least number that keeps the accuracy, in the order of their sensitivity."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hessprune.deploy.evaluation import evaluate
from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.batches import Pairs
from hessprune.foundation.checks import check_batches, check_range
from hessprune.foundation.trees import describe
from hessprune.quantize.config import Scheme
from hessprune.quantize.qat import calibrate
from hessprune.quantize.sensitivity import LayerSensitivity, prepare, quantization_sensitivity


def choose_fp32_layers(
    model: nn.Module,
    example_inputs: Any,
    batches: Iterable[Any],
    *,
    tolerance: float = 0.5,
    validation: Iterable[Any] | None = None,
    scheme: Scheme | None = None,
    dynamic_length: bool = False,
) -> dict[str, str]:
    """Return the layers that must stay in FP32 for INT8 to be as accurate as the float model, without training.

    If the calibrated model with every layer in INT8 loses at most `tolerance` points of accuracy, none must. Else
    layers go to FP32 in the order of `quantization_sensitivity`; their number is doubled until the loss is tolerable,
    then bisected. Each number tried is a model that is calibrated and evaluated.

    Args:
        model: A float model; stays untouched.
        example_inputs: A tensor, tuple or dict.
        batches: Re-iterable of (inputs, targets), for calibration and curvature; some hundred samples.
        tolerance: Points of accuracy that may be lost: with 0.5, 91.9 % may become 91.4 %.
        validation: Re-iterable of (inputs, labels) on which accuracy is measured; `batches` by default. One of 500
            samples weighs 0.2 points.
        scheme: The grids, those of `prepare_qat` by default.
        dynamic_length: Whether batches differ in length, as for `prepare_qat`.

    Returns:
        Names with reasons, the most sensitive first; `prepare_qat` takes them as `keep_fp32`.

    Raises:
        ArgumentError: `tolerance` is negative, or out of reach with a single layer in INT8; or as `prepare_qat`.
        DataError: The example or the batches do not fit the model, or have no labels.
        MissingDependencyError: torchao or the target is not installed.
        NumericalError: Weights are not finite.
        UnsupportedModelError: The model cannot be captured, or has no layer to quantise.

    Example:
        >>> import torch, hessprune as hp
        >>> _ = torch.manual_seed(0)
        >>> model, x = torch.nn.Linear(4, 2), torch.randn(64, 4)
        >>> hp.choose_fp32_layers(model, x, [(x, model(x).argmax(1))], tolerance=2)
        {}
    """
    check_range("tolerance", tolerance, low=0, high=100)
    judged = "batches" if validation is None else "validation"
    validation = Pairs(batches if validation is None else validation, model, judged)
    batches = Pairs(batches, model)
    _check_labels(validation, judged)
    float_accuracy = _accuracy(model, validation)

    def lost(kept: Mapping[str, str]) -> float:
        """Return the points of accuracy lost with some layers in FP32."""
        int8 = calibrate(prepare(model, example_inputs, scheme, kept, dynamic_length=dynamic_length), batches)
        return 100 * (float_accuracy - _accuracy(int8, validation))

    all_lost = lost({})
    if all_lost <= tolerance:
        return {}
    reasons = _reasons(
        quantization_sensitivity(model, example_inputs, batches, scheme=scheme, dynamic_length=dynamic_length)
    )
    number = least(len(reasons) - 1, lambda number: lost(_first(reasons, number)) <= tolerance)
    if number is None:
        raise ArgumentError(
            f"`tolerance` must be within reach, got {tolerance:g} where INT8 loses {all_lost:.1f} points and more than "
            f"{tolerance:g} with all layers but one in FP32. Raise it, or train with rounding: "
            "hp.finetune(hp.prepare_qat(model, example_inputs), …)."
        )
    return _first(reasons, number)


def least(most: int, is_enough: Callable[[int], bool]) -> int | None:
    """Return the least number from 1 to `most` that is enough, if enough stays enough; None if `most` is not.

    Tries 1, 2, 4, … and bisects after the first that is enough.

    Example:
        >>> tried = []
        >>> least(20, lambda number: tried.append(number) or number >= 6), tried
        (6, [1, 2, 4, 8, 6, 5])
    """
    low, high = 0, min(1, most)  # `low` is too few
    while high == 0 or not is_enough(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _first(reasons: Mapping[str, str], number: int) -> dict[str, str]:
    return dict(list(reasons.items())[:number])


def _reasons(ranked: Mapping[str, LayerSensitivity]) -> dict[str, str]:
    """Say of every layer how much of the loss of rounding it makes up."""
    whole = sum(layer.total for layer in ranked.values()) or 1.0
    return {
        name: f"sensitivity {layer.total:.2g}: {layer.total / whole:.0%} of the loss of rounding"
        for name, layer in ranked.items()
    }


def _check_labels(batches: Iterable[Any], name: str) -> None:
    check_batches(batches, name)
    _, targets = next(iter(batches))
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise DataError(
            f"`{name}` must hold labels of classes, got {describe(targets)}: accuracy decides. Give (inputs, labels), "
            "or choose by hp.quantization_sensitivity, which needs none, and pass `keep_fp32` to hp.prepare_qat."
        )


def _accuracy(model: nn.Module, batches: Any) -> float:
    accuracy = evaluate(model, batches).accuracy
    assert accuracy is not None, "labels have been checked"
    return accuracy
