"""Products of two activations: contractions of channels, and attention, whose units are heads."""

import re
from typing import Any

import torch
from torch import Tensor

from hessprune.foundation.written import WrittenSize
from hessprune.operators.call import Call
from hessprune.operators.labels import compact, constant, removable, varies
from hessprune.operators.leaves import Leaf
from hessprune.operators.linear import contract, emit, product_with_parameter
from hessprune.operators.maps import read_addmm, read_matmul, read_mm
from hessprune.operators.table import register


def matmul(call: Call) -> Any:
    """Follow `(…, M, K) @ (…, K, P)`: with a matrix of parameters on either side, a linear layer."""
    left, right = call.args[:2]
    if isinstance(right, Leaf) and len(right.shape) == 2 and not isinstance(left, Leaf):
        return product_with_parameter(call, call.walk.as_labels(left), right, -1, inner=0)
    if isinstance(left, Leaf) and len(left.shape) == 2 and not isinstance(right, Leaf) and len(right.shape) > 1:
        return product_with_parameter(call, call.walk.as_labels(right), left, -2, inner=1)
    tensors = [call.walk.as_labels(arg) for arg in (left, right)]
    if min(tensor.dim() for tensor in tensors) < 2:
        return call.refuse(f"'{call.operator}'{call.where} contracts a whole vector")
    return product(call, tensors[0], tensors[1]).expand(call.shape)


register("matmul", labels=matmul, linear_map=read_matmul, derivative="product")
register("mm", labels=matmul, linear_map=read_mm, derivative="product")
register("bmm", labels=matmul, derivative="product")
register("rmatmul", derivative="product")


def product(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """Tie the contracted channels of `(…, M, K) @ (…, K, P)`; units along batch axes are whole matrices (heads)."""
    if any(varies(labels, dim) for labels in (left, right) for dim in range(labels.dim() - 2)):
        if not call.walk.closure.frees_widths:
            return one_unit_per_matrix(call, [left, right])
        return product_of_widths(call, left, right)
    if varies(left, -1) and varies(left, -2) and not removable(right):  # the axis that both share stays as it is
        call.labels.tie_along(left, -1)
        left = left.narrow(-1, 0, 1).expand(left.shape)
    left, right = call.per_head(left, -1), call.per_head(right, -2)
    contracted = varies(left, -1), varies(right, -2)
    if any(contracted):
        call.labels.tie(call.channels(left, -1), call.channels(right, -2))
    rows = constant(left.shape) if contracted[0] else left
    columns = constant(right.shape) if contracted[1] else right
    if varies(rows, -2) and varies(columns, -1) and call.walk.shares(call.node, rows):  # as a table of values
        call.pin(columns, -1, "every head reads it")
        columns = constant(right.shape)
    return call.meet([rows.narrow(-1, 0, 1), columns.narrow(-2, 0, 1)])


def attention(call: Call) -> Tensor:
    """Tie queries, keys, values and the added mask within each head: one head is one unit."""
    names = [name for name in ("query", "key", "value", "attn_mask") if call.get(name) is not None]
    tensors = [call.walk.as_labels(call[name]) for name in names]
    if call.get("enable_gqa"):  # several heads of queries share keys and values
        shares = [tensors[0].shape[-3] // labels.shape[-3] for labels in tensors[1:3]]
        pairs = zip(tensors[1:3], shares, strict=True)
        tensors[1:3] = [labels.repeat_interleave(share, -3) if share > 1 else labels for labels, share in pairs]
    if call.walk.closure.frees_widths:
        return widths(call, tensors)
    return one_unit_per_matrix(call, tensors).expand(call.shape)


register("scaled_dot_product_attention", labels=attention)


def product_of_widths(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """Tie the widths of queries and keys that are multiplied within heads, or pass on those of values."""
    if varies(left, -2):  # weights of attention, with numbers for every pair of positions
        call.labels.freeze(left, f"it belongs to pairs of positions{call.where}")
        left = constant(left.shape)
    rows, columns = (like_every_head(call, labels) for labels in (left, right))
    if varies(rows, -1) or varies(columns, -2):
        call.labels.tie(call.channels(rows, -1), call.channels(columns, -2))
        call.note_width("qk", rows, -1)
        return constant(call.shape)
    call.note_width("v", columns, -1)
    return right.narrow(-2, 0, 1).expand(call.shape)


def widths(call: Call, tensors: list[Tensor]) -> Tensor:
    """Tie queries and keys along the width that they are multiplied over; what is added to their products stays."""
    query, key, value = (like_every_head(call, labels) for labels in tensors[:3])
    for labels in tensors[3:]:
        call.labels.freeze(labels, f"it is added for each head{call.where}")
    for labels in (query, key, value):
        call.labels.tie_along(labels, -2)
    call.labels.tie(call.channels(query, -1), call.channels(key, -1))
    call.note_width("qk", query, -1)
    call.note_width("v", value, -1)
    if call.get("scale") is None:
        call.note_size(WrittenSize("scale", query.dim() - 1, query.dim(), query.shape[-1]), query)
    return tensors[2].narrow(-2, 0, 1).expand(call.shape)


def like_every_head(call: Call, labels: Tensor) -> Tensor:
    """Tie all heads, position by position; return labels that are those of the first head for each."""
    for dim in range(labels.dim() - 2):
        call.labels.tie_along(labels, dim)
        labels = labels.narrow(dim, 0, 1).expand(labels.shape)
    return labels


def one_unit_per_matrix(call: Call, tensors: list[Tensor]) -> Tensor:
    """Tie all labels within each matrix of the last two axes, and those of matrices that meet."""
    tensors = [_without_shared(call, _without_shared(call, labels, -1), -2) for labels in tensors]
    for labels in tensors:
        call.labels.tie_along(labels, -1)
        call.labels.tie_along(labels[..., :1], -2)
        call.walk.note_head(labels[..., :1, :1])
    return call.meet([labels[..., :1, :1] for labels in tensors])


def _without_shared(call: Call, labels: Tensor, dim: int) -> Tensor:
    """Freeze what is the same in all matrices along an axis of which other parts belong to one matrix each.

    As the rotated part of keys that all heads share: it would tie the heads.
    """
    small = compact(labels)[0]
    if not varies(small, dim) or not removable(small):
        return labels
    others = [axis for axis in range(small.dim()) if axis != small.dim() + dim]
    in_all = small == small[(slice(0, 1),) * (small.dim() - 2)]
    is_shared = in_all.all(others) if any(varies(small, axis) for axis in others[:-1]) else in_all.new_zeros(())
    if is_shared.dim() == 0 or is_shared.all() or not is_shared.any():
        return labels
    places = torch.arange(small.shape[dim], device="cpu")
    call.labels.freeze(small.index_select(dim, places[is_shared]), f"every head reads it{call.where}")
    own = places.where(~is_shared, places[~is_shared][0])
    return labels.index_select(dim, own)


def einsum(call: Call) -> Any:
    """Follow two operands with shared, contracted and free axes: a product in another notation."""
    inputs, _, out = re.sub(r"\s", "", call["equation"]).partition("->")
    (left, a), *rest = zip(call["tensors"], inputs.split(","), strict=True)
    right, b = rest[0] if rest else (None, "")
    is_product = len(rest) == 1 and set(out) == (set(a) ^ set(b)) | (set(a) & set(b) & set(out))
    if not is_product or not (a + b + out).isalpha() or any(len(set(term)) < len(term) for term in (a, b, out)):
        return call.refuse(f"'einsum' of '{call['equation']}'{call.where} mixes its channels")
    if isinstance(left, Leaf):
        (left, a), (right, b) = (right, b), (left, a)
    batch, inner = [axis for axis in a if axis in b and axis in out], [axis for axis in a if axis not in out]
    rows, columns = [axis for axis in a if axis not in b], [axis for axis in b if axis not in a]
    x = _arranged(call.walk.as_labels(left), a, [*batch, *rows, *inner])
    if isinstance(right, Leaf) and len(b) == 2 and not batch:
        labels = product_with_parameter(call, x, right, -1, inner=b.index(inner[0]))
    else:
        y = _arranged(call.walk.as_labels(right), b, [*batch, *inner, *columns])
        labels = _matrix_product(call, x, y, len(batch), len(inner))
    return _arranged(labels, "".join([*batch, *rows, *columns]), list(out))


register("einsum", labels=einsum, derivative="product")


def _arranged(labels: Tensor, term: str, order: list[str]) -> Tensor:
    """Permute the axes of an operand, named by the letters of `term`."""
    return labels.permute([term.index(axis) for axis in order])


def _matrix_product(call: Call, x: Tensor, y: Tensor, num_batch: int, num_inner: int) -> Tensor:
    """Multiply `(*batch, *rows, *inner)` by `(*batch, *inner, *columns)`; each run of axes counts as one axis."""
    batch = x.shape[:num_batch]
    rows, columns = x.shape[num_batch : x.dim() - num_inner], y.shape[num_batch + num_inner :]
    left = x.reshape([*batch, rows.numel(), -1])
    right = y.reshape([*batch, left.shape[-1], columns.numel()])
    return product(call, left, right).expand([*batch, rows.numel(), columns.numel()]).reshape([*batch, *rows, *columns])


def added_product(call: Call) -> Any:
    """Follow `addend + left @ right`: with a matrix of parameters on the right and a bias, a linear layer."""
    addend, left, right = call.args[:3]
    is_bias = isinstance(addend, Leaf) and len(addend.shape) == 1
    if isinstance(right, Leaf) and len(right.shape) == 2 and is_bias and not isinstance(left, Leaf):
        x = call.walk.as_labels(left)
        contract(call, call.channels(x, -1), right, 0)
        return emit(call, x, call.walk.axis(right, 1, "producer"), -1, "self")
    if any(isinstance(operand, Leaf) for operand in (left, right)):
        return contraction(call)
    out = product(call, call.walk.as_labels(left), call.walk.as_labels(right))
    return call.meet([out, call.walk.as_labels(addend)]).expand(call.shape)


register("addmm", labels=added_product, linear_map=read_addmm, derivative="product")
register("baddbmm", labels=added_product, derivative="product")


def contraction(call: Call) -> Any:
    """Refuse contractions in general."""
    return call.refuse(f"'{call.operator}'{call.where} mixes its channels")


register(
    "addbmm", "bilinear", "outer", "dot", "mv", "tensordot", labels=contraction, derivative="product"
)  # fmt: skip
register("inner", derivative="product")
