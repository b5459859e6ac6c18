"""Products of two activations: within one batch slice everything depends on everything, so it is one unit (a head)."""

from typing import Any

import torch
from torch import Tensor

from hessprune.structure.labels import CONSTANT, constant, expanded
from hessprune.structure.rules.linear import product_with_parameter
from hessprune.structure.rules.registry import rule
from hessprune.structure.walk import Call, Leaf


@rule("matmul", "bmm", "mm")
def product(call: Call) -> Any:
    """`(…, M, K) @ (…, K, P)`: with a parameter on the right a linear layer, else one unit per batch slice."""
    left, right = call.args[:2]
    if isinstance(right, Leaf) and len(right.shape) == 2 and not isinstance(left, Leaf):
        return product_with_parameter(call, left, right)
    tensors = [call.walk.as_labels(arg) for arg in (left, right)]
    if min(tensor.dim() for tensor in tensors) < 3:
        return call.refuse(f"a product of activations{call.where} mixes its channels")
    return one_unit_per_slice(call, tensors)


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Tensor:
    """Queries, keys and values of one head are one unit; the mask is not looked at."""
    return one_unit_per_slice(call, [call.walk.as_labels(call[name]) for name in ("query", "key", "value")])


def one_unit_per_slice(call: Call, tensors: list[Tensor]) -> Tensor:
    """Tie all labels whose leading (batch) indices agree."""
    batch = call.shape[:-2]
    slices = [expanded(labels.expand(*batch, *labels.shape[-2:])) for labels in tensors]
    for labels in slices:
        call.labels.tie_along(labels, -1)
        call.labels.tie_along(labels[..., :1], -2)
    heads = [labels[..., :1, :1] for labels in slices]
    out = constant(heads[0].shape)
    for labels in heads:
        call.labels.tie(out, labels)
        out = torch.where(out != CONSTANT, out, labels)
    return out.expand(call.shape)


@rule("einsum", "baddbmm", "addbmm", "addmm", "bilinear", "outer", "dot", "mv")
def contraction(call: Call) -> Any:
    """General contractions are not followed."""
    return call.refuse(f"'{call.operator}'{call.where} mixes its channels")
