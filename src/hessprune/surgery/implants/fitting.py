"""Fit stand-ins to the outputs of their filters on calibration data: ridge least squares in closed form."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches
from hessprune.foundation.modules import device_of
from hessprune.foundation.trees import to_device
from hessprune.layers.recording import record
from hessprune.layers.sums import Sums
from hessprune.planning.plan import Plan
from hessprune.surgery.implants.arrangement import origins
from hessprune.surgery.implants.module import Implanted, Part, factors, parts_of
from hessprune.surgery.implants.stand_ins import layer_sums, low_rank_fit


@torch.no_grad()
def fit_stand_ins(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any) -> nn.Module:
    """Fit the stand-ins of a pruned model to the dense outputs of the units that they stand for.

    `min_W ‖Y − X W‖² + λ ‖W‖²`, a sum over all calibration positions. `X` are the stand-in's inputs in the dense model,
    restricted to the surviving channels, and `Y` the outputs of the dense filters; with a rank, `W` has that rank. The
    mean residual goes into the bias, or into the BatchNorm behind; without either, `X` and `Y` keep their means. `λ` is
    1e-8 of the mean diagonal of `XᵀX`. One forward pass of the dense model; float64.

    Args:
        dense: The model that the plan was made for.
        pruned: The result of `apply_plan`; both models are left untouched.
        plan: The plan between them.
        batches: Calibration data, a re-iterable of `(inputs, targets)`.

    Returns:
        A copy of `pruned` with fitted stand-ins.

    Raises:
        DataError: `batches` cannot be read twice or is empty.
    """
    batches = Rereadable.of(batches, dense)
    check_batches(batches)
    fitted = copy.deepcopy(pruned)
    sums = layer_sums(dense, plan.stand_ins, batches)
    inputs = to_device(next(iter(batches))[0], device_of(fitted))
    buffers = {id(buffer): buffer for buffer in fitted.buffers()}
    means = {weight: buffers[mean][at:] for weight, (mean, at) in record(fitted, inputs).absorbing.items()}
    for name, module, parts in parts_of(fitted, dense, plan):
        _fit(module, [part for part in parts if part.is_stand_in], sums[name], _columns(dense, plan, name), means)
    return fitted


def _columns(dense: nn.Module, plan: Plan, name: str) -> Tensor:
    """Return the columns of the regression that are left in the pruned model, in its order."""
    weight, axis = dense.get_parameter(f"{name}.weight"), (f"{name}.weight", 1)
    channels = origins(plan, {axis: weight.shape[1]})[axis]
    if plan.stand_ins[name] is None:
        return channels
    size = weight[0, 0].numel()
    return (channels[:, None] * size + torch.arange(size, device="cpu")).flatten()


def _fit(module: Implanted, parts: list[Part], sums: Sums, columns: Tensor, means: dict[str, Tensor]) -> None:
    """Fit all stand-ins of one layer, which share a base where they have a rank."""
    rows = torch.cat([part.rows for part in parts])
    moments = sums.select(columns, rows)
    absorbs = parts[0].layer.bias is not None or all(f"{part.name}.weight" in means for part in parts)
    rank = len(module.base.weight) if isinstance(module.base, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) else None
    weight = low_rank_fit(moments.centred() if absorbs else moments, rank, moments.xx.diagonal().mean()).T
    shift = (moments.y - moments.x @ weight.T) / moments.count
    if rank is not None:
        weight, base = factors(weight, rank)
        _put(module.base.weight, base)
    lengths = [len(part.rows) for part in parts]
    for part, filters, constant in zip(parts, weight.split(lengths), shift.split(lengths), strict=True):
        _put(part.layer.weight, filters)
        if part.layer.bias is not None:
            part.layer.bias += constant.to(part.layer.bias)
        elif absorbs:
            mean = means[f"{part.name}.weight"][: len(constant)]
            mean -= constant.to(mean)


def _put(parameter: Any, values: Tensor) -> None:
    parameter.copy_(values.reshape(parameter.shape).to(parameter))
