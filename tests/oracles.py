"""Slow twins, obviously right, in float64: dense Hessians and Gauss–Newton matrices, elimination one by one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def double(model: nn.Module) -> nn.Module:
    return model.double().eval()


def mean_loss_of(model: nn.Module, batches, loss_fn: Callable[[Tensor, Tensor], Tensor], params: dict[str, Tensor]):
    """The mean loss over all samples as a function of some parameters."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return loss_fn(functional_call(model, params, (inputs,)), targets)


def dense_hessian(model: nn.Module, batches, name: str, loss_fn=F.cross_entropy) -> Tensor:
    """The Hessian of the mean loss in one parameter, `(P, P)`."""
    weight = model.get_parameter(name).detach()
    matrix = torch.autograd.functional.hessian(lambda w: mean_loss_of(model, batches, loss_fn, {name: w}), weight)
    return matrix.reshape(weight.numel(), weight.numel()).detach()


def dense_ggn(model: nn.Module, batches, name: str, loss_fn=F.cross_entropy) -> Tensor:
    """`(∂f/∂w)ᵀ (∂²L/∂f²) (∂f/∂w)` in one parameter, `(P, P)`, `L` the mean loss as a function of all logits `f`."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    weight = model.get_parameter(name).detach()
    jacobian = torch.autograd.functional.jacobian(lambda w: functional_call(model, {name: w}, (inputs,)), weight)
    logits = model(inputs).detach()
    outer = torch.autograd.functional.hessian(lambda f: loss_fn(f, targets), logits)
    jacobian = jacobian.reshape(logits.numel(), weight.numel())
    return (jacobian.T @ outer.reshape(logits.numel(), logits.numel()) @ jacobian).detach()


def block_traces_of(matrix: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """Traces of the diagonal blocks of one parameter's `(P, P)` matrix, one for each index along `dim`."""
    diagonal = matrix.diagonal().reshape(shape).movedim(dim, 0)
    return diagonal.flatten(1).sum(1) if diagonal.dim() > 1 else diagonal


def eliminated_one_by_one(layers, units: int) -> tuple[list[int], list[list[Tensor]]]:
    """The order in which units leave, and the changed weight `(g, K, O)` of each layer after every removal.

    Each layer is `(weight, inverse covariance, curvature, columns)`. Every removal updates the whole inverse.
    """
    layers = [(weight.clone(), inverse.clone(), *others) for weight, inverse, *others in layers]
    left, order, weights = list(range(units)), [], []
    while left:
        losses = [sum(_loss_of(layer, unit) for layer in layers) for unit in left]
        least = min(losses)
        unit = next(u for u, loss in zip(left, losses, strict=True) if loss <= least + 1e-9 * abs(least))
        for weight, inverse, _, columns in layers:
            gone = columns[unit]
            share = torch.linalg.solve(inverse[:, gone][:, :, gone], inverse[:, gone])
            weight -= share.mT @ weight[:, gone]
            inverse -= inverse[:, :, gone] @ share
            weight[:, gone] = 0
        left.remove(unit)
        order.append(unit)
        weights.append([weight.clone() for weight, *_ in layers])
    return order, weights


def _loss_of(layer, unit: int) -> float:
    """`½ tr(W_Jᵀ P_JJ⁻¹ W_J G)`."""
    weight, inverse, curvature, columns = layer
    gone = columns[unit]
    ratio = torch.linalg.solve(inverse[:, gone][:, :, gone], weight[:, gone])
    return float((weight[:, gone].mT @ ratio @ curvature).diagonal(dim1=1, dim2=2).sum() / 2)
