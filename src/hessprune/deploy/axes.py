"""The axes of inputs that may have any size, and inputs of other sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils._pytree import tree_map

from hessprune.foundation.trees import leading_size, tensors_in

MAX_BATCH = 65535
"""Largest batch of a capture. CUDA normalises larger batches in another kernel, and a capture holds one kernel only;
exported files accept any batch."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes that an exported file accepts any size of.

    Attributes:
        batch: The first axis of every tensor where it is as long as that of the first tensor.
        length: The second axis of these where it is as long as that of the first tensor.

    Example:
        >>> Axes(length=True).of({"x": torch.zeros(2, 5), "scale": torch.zeros(3)}, names=True)
        {'x': {0: 'batch', 1: 'length'}, 'scale': None}
    """

    batch: bool = True
    length: bool = False

    def of(self, example: Any, *, names: bool = False) -> Any:
        """Return the axes of every tensor, in the format of torch.export or as names; None without any."""
        if not (self.batch or self.length):
            return None
        # A length has the bounds that the model sets itself, such as its number of positions.
        batch: Any = "batch" if names else Dim("batch", max=MAX_BATCH)
        length: Any = "length" if names else Dim.DYNAMIC
        size, steps = leading_size(example), length_of(example)

        def axes(leaf: Any) -> dict[int, Any] | None:
            if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != size:
                return None
            return {axis: (batch, length)[axis] for axis in self._free(leaf, size, steps)}

        return tree_map(axes, example if isinstance(example, Mapping) else positional(example))

    def free(self, example: Any) -> list[set[int]]:
        """Return the axes of every tensor, in the order of `tensors_in`.

        Example:
            >>> Axes().free((torch.zeros(2, 5), torch.zeros(3)))
            [{0}, set()]
        """
        size, steps = leading_size(example), length_of(example)
        return [self._free(tensor, size, steps) for tensor in tensors_in(example)]

    def _free(self, tensor: Tensor, size: int, steps: int) -> set[int]:
        if not tensor.dim() or tensor.shape[0] != size:
            return set()
        is_long = self.length and tensor.dim() > 1 and tensor.shape[1] == steps
        return ({0} if self.batch else set()) | ({1} if is_long else set())

    def fewer(self, verb: str) -> str:
        """Return the advice to ask for fewer axes, after a verb; empty where there are none."""
        asked = {"dynamic_batch=False": self.batch, "dynamic_length=False": self.length}
        named = " or ".join(name for name, wanted in asked.items() if wanted)
        return f"{verb} {named}" if named else ""


def positional(example: Any) -> tuple[Any, ...]:
    """Return inputs as positional arguments."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def length_of(example: Any) -> int:
    """Return the size of the second axis of the first tensor; 0 where it has none."""
    first = next(iter(tensors_in(example)), None)
    return 0 if first is None or first.dim() < 2 else first.shape[1]


def resized(tree: Any, batch_size: int) -> Any:
    """Repeat or drop samples so that `batch_size` of them remain."""
    size = leading_size(tree)
    rows = torch.arange(batch_size, device="cpu") % max(1, size)

    def resize(leaf: Any) -> Any:
        return leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else leaf

    return tree_map(resize, tree)


def halved(tree: Any) -> Any:
    """Return samples of half the length, two steps at least."""
    size, steps = leading_size(tree), length_of(tree)

    def cut(leaf: Any) -> Any:
        is_long = isinstance(leaf, Tensor) and leaf.dim() > 1 and leaf.shape[:2] == (size, steps)
        return leaf[:, : max(2, steps // 2)] if is_long else leaf

    return tree_map(cut, tree)


def shuffled(tree: Any) -> Any:
    """Return samples whose numbers stand in another order along the last axis, at random: other samples of their range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> shuffled(torch.arange(8.0).expand(2, 8)).sort(-1).values.tolist()[1]
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    size = leading_size(tree)

    def shuffle(leaf: Any) -> Any:
        moves = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1 and leaf.shape[0] == size
        return leaf.gather(-1, torch.rand_like(leaf).argsort(-1)) if moves else leaf

    return tree_map(shuffle, tree)
