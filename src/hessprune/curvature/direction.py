r"""The Hessian–vector product in the direction of the weights themselves, for SOSP-H.

With `θ` the weights of all units, and zero elsewhere, `θ_uᵀ (H θ)` is the second-order interaction of unit `u` with the
removal of all units. One product per batch, with the network's true Hessian.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, check_finite, pose
from hessprune.curvature.products import ProductMode
from hessprune.curvature.results import Slices
from hessprune.foundation.processes import summed, summed_numbers
from hessprune.foundation.trees import sample_rows
from hessprune.objectives.objective import BatchLoss, check_weight


def weight_curvature(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    loss_fn: Any = None,
    precision: str = "fp32",
    options: TraceOptions | None = None,
) -> dict[str, Tensor]:
    """Return `θ_uᵀ H θ` for every unit, `{key: (U,)}` in float64.

    `H` is the Hessian of the mean loss in evaluation mode. Costs about one and a half training steps per batch.

    Args:
        model: Any module; it is left as it was.
        slices: For each key the slices of its units; `θ` consists of all of them.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.
        precision: `"fp32"`, `"bf16"`, `"fp16"` or `"fp64"`.
        options: Memory limit.

    Returns:
        One number per unit; they add up to `θᵀ H θ`.

    Raises:
        DataError: All targets are ignored by the loss.

    References:
        Nonnenmacher et al. (2022), SOSP, arXiv 2110.11395.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.curvature import ParamSlice
        >>> from hessprune.curvature.direction import weight_curvature
        >>> model = nn.Linear(1, 2, bias=False)
        >>> row = ParamSlice(param="weight", dim=0, index=torch.tensor([[0], [1]]))
        >>> x = torch.tensor([[1.0]])
        >>> values = weight_curvature(model, {"w": [row]}, [(x, torch.tensor([0]))], precision="fp64")["w"]
        >>> w, p = model.weight.detach().double()[:, 0], model(x).double().softmax(1)[0]
        >>> torch.allclose(values, w * ((torch.diag(p) - torch.outer(p, p)) @ w))
        True
    """
    effort = Effort(estimator="hutchinson", precision=precision, options=options or TraceOptions())
    problem = pose(model, slices, batches, loss_fn=loss_fn, effort=effort)
    directions = _directions(problem)
    total, weight = torch.zeros(problem.readout.num_units, dtype=torch.float64, device="cpu"), 0.0
    for _, inputs, loss in problem.each_batch("Hessian product"):
        for rows in problem.split(loss.counted()):
            total += _chunk(problem, inputs, loss, rows, directions).cpu()
        weight += loss.weight()
    total, (weight,) = summed(total), summed_numbers(weight)
    check_weight(weight)
    return problem.readout.split(total / weight)


def _directions(problem: Problem) -> dict[str, Tensor]:
    """Return the folded weights by name, with zeros outside all slices."""
    weights = dict(problem.folded.model.named_parameters())
    directions = {}
    for name in problem.readout.axes:
        owned = torch.zeros_like(weights[name], dtype=torch.bool)
        for piece in (piece for pieces in problem.readout.slices.values() for piece in pieces if piece.param == name):
            owned.index_fill_(piece.dim, piece.index.reshape(-1).to(owned.device), True)
        directions[name] = weights[name] * owned
    return directions


def _chunk(problem: Problem, inputs: Any, loss: BatchLoss, rows: Tensor, directions: dict[str, Tensor]) -> Tensor:
    """Return the products of one chunk, times its weight in the loss."""
    mode = ProductMode(problem.folded, problem.readout, problem.objective.read)

    def product(scale: float) -> Tensor:
        try:
            with problem.precision.casting(problem.device):
                outputs = check_finite(mode.forward(sample_rows(inputs, rows)))
            mode.differentiate(loss.loss(outputs.to(problem.precision.dtype), rows) * scale)
            return mode.product(directions) / scale
        finally:
            mode.close()

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        return problem.precision.finite(product) * loss.weight(rows)
