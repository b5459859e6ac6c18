"""A model as a function of one gate per unit, and dense derivatives in the gates."""

import torch
from torch import Tensor, nn

from hessprune.operators.leaves import Role
from hessprune.structure.groups import Group

Y = torch.tensor([0, 2, 1])


def gated(model: nn.Module, groups: tuple[Group, ...], x: Tensor, role: Role):
    """The model's logits as a function of one gate per unit, multiplied onto the slices of one role."""
    names = sorted({p.param for g in groups for p in g.slices_with_role(role)})
    base = {name: model.get_parameter(name).detach() for name in names}
    sizes = [g.num_units for g in groups]

    def logits(gates: Tensor) -> Tensor:
        params = dict(base)
        for group, own in zip(groups, gates.split(sizes), strict=True):
            for piece in group.slices_with_role(role):
                index, shape = piece.positions(), [1] * base[piece.param].dim()
                shape[piece.dim] = -1
                ones = torch.ones(base[piece.param].shape[piece.dim], dtype=torch.float64)
                gate = ones.index_put((index.reshape(-1),), own.repeat_interleave(index.shape[1]))
                params[piece.param] = params[piece.param] * gate.view(shape)
        return torch.func.functional_call(model, params, (x,))

    return logits, torch.ones(sum(sizes), dtype=torch.float64)


def gauss_newton(logits, gates: Tensor) -> Tensor:
    jacobian, p = torch.func.jacrev(logits)(gates), logits(gates).softmax(1)
    return torch.einsum("ncu,ncd,ndv->uv", jacobian, torch.diag_embed(p) - p[:, :, None] * p[:, None], jacobian) / len(
        p
    )


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(values.values()))
