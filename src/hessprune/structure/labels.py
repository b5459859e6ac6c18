"""Labels stand in for numbers: equal labels must stay together when channels are removed.

A label is an integer. Every index of every parameter axis gets a fresh one; running the model's graph on label tensors
moves them about, and wherever two labels meet they are tied. What is tied in the end is one removable unit.

Label tensors keep the shape of the activation they stand for, but are stored expanded (stride 0) along every axis on
which they do not vary, so the 112×112 positions of a feature map cost nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CONSTANT = 0
"""The label of what belongs to no unit: scalars, masks, anything that removing channels leaves as it is."""


class Labels:
    """A union–find over labels whose ties are collected first and resolved in bulk."""

    def __init__(self) -> None:
        self._count = 1  # 0 is CONSTANT
        self._ties: list[np.ndarray] = []  # each (2, n)
        self._frozen: list[tuple[np.ndarray, str]] = []

    def new(self, count: int) -> Tensor:
        """Return `count` fresh labels."""
        self._count += count
        return torch.arange(self._count - count, self._count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Tie labels that meet element-wise (with broadcasting); a constant ties nothing."""
        a, b = compact(*torch.broadcast_tensors(a, b))
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)]).numpy()
        pairs = pairs[:, (pairs != CONSTANT).all(0) & (pairs[0] != pairs[1])]
        if pairs.size:
            self._ties.append(np.unique(pairs, axis=1))

    def tie_along(self, labels: Tensor, dim: int) -> None:
        """Tie everything that differs only in its index along `dim`: this axis keeps its size."""
        if labels.shape[dim] > 1 and varies(labels, dim):
            self.tie(labels, labels.narrow(dim, 0, 1))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Mark labels as not removable; the first reason given is the one reported."""
        found = np.unique(compact(labels)[0].numpy())
        self._frozen.append((found[found != CONSTANT], reason))

    def roots(self) -> np.ndarray:
        """Return for every label the smallest label it is tied to (connected components, in bulk)."""
        root = np.arange(self._count)
        if not self._ties:
            return root
        a, b = np.unique(np.concatenate(self._ties, axis=1), axis=1)
        while True:
            low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
            if (low == high).all():
                return root
            np.minimum.at(root, high, low)
            while (root[root] != root).any():
                root = root[root]

    def frozen_roots(self, roots: np.ndarray) -> dict[int, str]:
        """Return the reason for each component that holds a frozen label."""
        reasons: dict[int, str] = {}
        for labels, reason in self._frozen:
            for root in np.unique(roots[labels]).tolist():
                reasons.setdefault(root, reason)
        return reasons


def compact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Narrow tensors of one shape to index 0 along every axis on which all of them are expanded."""
    for dim in range(tensors[0].dim()):
        if tensors[0].shape[dim] > 1 and all(tensor.stride(dim) == 0 for tensor in tensors):
            tensors = tuple(tensor.narrow(dim, 0, 1) for tensor in tensors)
    return tensors


def varies(labels: Tensor, dim: int) -> bool:
    """Return whether labels differ along `dim`."""
    if labels.shape[dim] <= 1 or labels.stride(dim) == 0:
        return False
    small = compact(labels)[0]
    return not bool((small == small.narrow(dim, 0, 1)).all())


def expanded(labels: Tensor) -> Tensor:
    """Store labels expanded along every axis on which they do not vary."""
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and labels.stride(dim) != 0 and not varies(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(labels.shape)
    return labels


def along(labels: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """Spread one label per index of axis `dim` over a tensor of `shape`."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(shape)


def constant(shape: Sequence[int]) -> Tensor:
    """Return a label tensor of constants."""
    return torch.full((), CONSTANT, dtype=torch.int64).expand(shape)
