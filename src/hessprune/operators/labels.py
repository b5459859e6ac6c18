"""Labels stand in for numbers: equal labels must stay together when channels are removed.

A label is an integer. Every index of every parameter axis gets a fresh positive label. The model's graph, run on label
tensors, moves labels, and labels that meet are tied. At the end, tied labels are one removable unit. Labels `≤ 0` are
fixed: no removal can reach them, and each has a reason.

A label tensor has the shape of its activation. Its storage is expanded (stride 0) along every axis on which the labels
do not vary, so the 112×112 positions of a feature map cost nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CONSTANT = 0
"""The fixed label of scalars, and of other values without a better reason."""


class Labels:
    """A union–find over labels whose ties are collected first and resolved in bulk."""

    def __init__(self) -> None:
        self._count = 1  # 0 is CONSTANT
        self._root = np.zeros(1, dtype=np.int64)
        self._ties: list[np.ndarray] = []  # pairs packed in one number, not yet resolved
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._resolved: tuple[tuple[int, int, int], Tensor] | None = None
        self._reasons = {"it meets a constant": CONSTANT}

    def new(self, count: int) -> Tensor:
        """Return `count` fresh labels."""
        self._count += count
        return torch.arange(self._count - count, self._count, device="cpu")

    def fixed(self, shape: Sequence[int], reason: str) -> Tensor:
        """Return labels for a tensor that keeps its shape."""
        return torch.tensor(self._reasons.setdefault(reason, -len(self._reasons)), device="cpu").expand(shape)

    def reason(self, label: int) -> str:
        """Return the reason of a label `≤ 0`."""
        return list(self._reasons)[-label]

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Tie labels element by element, with broadcasting; a label tied to a fixed label is frozen for its reason."""
        a, b = compact(*torch.broadcast_tensors(a, b))
        x, y = a.reshape(-1).numpy(), b.reshape(-1).numpy()
        low, high = np.minimum(x, y)[x != y], np.maximum(x, y)[x != y]
        free = low > CONSTANT
        for label in [] if free.all() else np.unique(low[~free & (high > CONSTANT)]).tolist():
            self._frozen.append((np.unique(high[low == label]), self.reason(label)))
        if free.any():
            packed = low[free] << 32 | high[free]
            self._ties.append(np.unique(packed) if len(packed) > 4096 else packed)

    def tie_along(self, labels: Tensor, dim: int) -> None:
        """Tie labels that differ only in their index along `dim`: this axis keeps its size."""
        if varies(labels, dim):
            self.tie(labels, labels.narrow(dim, 0, 1))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Mark labels as not removable; the first reason counts."""
        numbers = np.unique(compact(labels)[0].numpy())
        self._frozen.append((numbers[numbers > CONSTANT], reason))

    def roots(self) -> np.ndarray:
        """Return the smallest tied label of every label: connected components, in bulk."""
        self._root = root = np.concatenate([self._root, np.arange(len(self._root), self._count)])
        packed, self._ties = np.concatenate([np.empty(0, np.int64), *self._ties]), []
        a, b = packed >> 32, packed & 0xFFFFFFFF
        while len(a):
            a, b = root[a], root[b]
            a, b = np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]
            np.minimum.at(root, b, a)
            while not np.array_equal(further := root[root], root):
                root[:] = further
        return root

    def resolve(self, labels: Tensor) -> Tensor:
        """Replace every label by its root, or by a fixed label if the root is frozen; expand where nothing varies."""
        small = compact(labels)[0]
        return expanded(torch.where(small > CONSTANT, self._meaning()[small.clamp(min=0)], small).expand(labels.shape))

    def _meaning(self) -> Tensor:
        """Return the root or the fixed label of every label; compute them anew only after a change."""
        state = (self._count, len(self._ties), len(self._frozen))
        if self._resolved is None or self._resolved[0] != state:
            roots, (numbers, reasons) = self.roots(), self.frozen()
            fixed = np.array([CONSTANT, *(int(self.fixed((), reason)) for reason in reasons)])
            meaning = np.where(numbers < 0, roots, fixed[numbers + 1])
            self._resolved = ((self._count, 0, len(self._frozen)), torch.from_numpy(meaning))
        return self._resolved[1]

    def varying(self, labels: Tensor) -> tuple[int, ...]:
        """Return all axes along which a tensor holds different units."""
        return varying(self.resolve(labels))

    def frozen(self) -> tuple[np.ndarray, list[str]]:
        """Return, for every label, the number of the reason that freezes it (-1: none), and the reasons."""
        roots = self.roots()
        numbers = np.full(len(roots), -1)
        for number, (labels, _) in reversed(list(enumerate(self._frozen))):
            numbers[roots[labels]] = number
        return numbers[roots], [reason for _, reason in self._frozen]


def compact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Narrow tensors of one shape to index 0 along every axis that is expanded in all of them."""
    strides = zip(*(tensor.stride() for tensor in tensors), strict=True)
    index = tuple(slice(None) if any(steps) else slice(0, 1) for steps in strides)
    return tuple(tensor[index] for tensor in tensors) if slice(0, 1) in index else tensors


def varies(labels: Tensor, dim: int) -> bool:
    """Return whether labels differ along `dim`."""
    if labels.shape[dim] <= 1 or labels.stride(dim) == 0:
        return False
    small = compact(labels)[0]
    return not bool((small == small.narrow(dim, 0, 1)).all())


def varying(labels: Tensor) -> tuple[int, ...]:
    """Return all axes along which labels differ."""
    return tuple(dim for dim in range(labels.dim()) if varies(labels, dim))


def removable(labels: Tensor) -> bool:
    """Return whether a tensor holds a label that is not fixed."""
    return bool((compact(labels)[0] > CONSTANT).any())


def expanded(labels: Tensor) -> Tensor:
    """Store labels expanded along every axis on which they do not vary."""
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and labels.stride(dim) != 0 and not varies(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(labels.shape)
    return labels


def merged(first: Tensor, second: Tensor) -> Tensor:
    """Broadcast two label tensors; return the first, and the second where the first is fixed."""
    both = torch.broadcast_tensors(first, second)
    a, b = compact(*both)
    return torch.where(a > CONSTANT, a, b).expand(both[0].shape)


def along(labels: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """Spread one label per index of axis `dim` over a tensor of `shape`."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(shape)


def constant(shape: Sequence[int]) -> Tensor:
    """Return a label tensor of constants."""
    return torch.tensor(CONSTANT, device="cpu").expand(shape)
