"""Slow twins, obviously right, in float64: the dense Hessian and the dense generalised Gauss–Newton matrix."""

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
