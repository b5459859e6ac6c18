"""Tensors whose size depends on numbers, as the rows that are sent to an expert, through one run of a model."""

from typing import Any

import torch
from torch import Tensor

from hessprune.foundation.trees import tensors_in

SELECTING = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"})
"""Operators whose result always has a size that depends on numbers."""
READING = frozenset({"tolist", "item"})
"""Functions that give numbers to Python, which may become sizes."""
WRITING = frozenset({
    "index_add",
    "index_copy",
    "index_put",
    "index_fill",
    "index_reduce",
    "scatter",
    "scatter_add",
    "masked_scatter",
})
"""Operators that write to a tensor, which keeps its size."""


class Choices:
    """Follows selections, and what is computed from them, until they are written to a tensor of another size.

    Example:
        >>> import torch
        >>> choices, mask = Choices(), torch.tensor([True, False])
        >>> rows = mask.nonzero()
        >>> choices.see("nonzero", (mask,), {}, rows)
        >>> choices.read("expert.weight", rows, rows)
        >>> choices.found, choices.readers
        (True, {'expert.weight'})
    """

    def __init__(self) -> None:
        self.found = False
        """True if a size may depend on numbers."""
        self.readers: set[str] = set()
        """Weights that read a tensor of such a size."""
        self._open: dict[int, Tensor] = {}  # these tensors by `id`, alive

    def see(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """Take note of one function."""
        if name in READING:
            self.found = True
        elif _selects(name, args, kwargs):
            self.found = True
            self._keep(output)
        elif self._open and self._meets(args, kwargs):
            written = args[0] if args else kwargs.get("input")
            if name not in WRITING or id(written) in self._open:
                self._keep(output)

    def read(self, weight: str, x: Tensor, output: Tensor) -> None:
        """Take note of a layer."""
        if id(x) in self._open:
            self.readers.add(weight)
            self._keep(output)

    def _meets(self, args: Any, kwargs: Any) -> bool:
        return any(id(tensor) in self._open for tensor in tensors_in([args, list(kwargs.values())]))

    def _keep(self, output: Any) -> None:
        self._open |= {id(tensor): tensor for tensor in tensors_in(output)}


def _selects(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether the size of an operator's result depends on numbers."""
    if name in ("getitem", "index"):
        return any(tensor.dtype == torch.bool for tensor in tensors_in(args[1:]))
    return name in SELECTING or (name == "where" and len(args) + len(kwargs) == 1)
