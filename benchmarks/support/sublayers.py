"""Heads or neurons of one block, as published methods for transformers see them."""

from dataclasses import dataclass

from torch import Tensor

import hessprune as hp


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """One group of units with its reader."""

    group: hp.Group
    reader: str
    """The linear layer that reads the units: module name."""
    cost: float
    """What one unit costs, in the budgeted quantity."""

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name

    @property
    def units(self) -> int:
        """The number of units."""
        return self.group.num_units

    @property
    def width(self) -> int:
        """Inputs of the reader that belong to one unit."""
        return len(self.group.slices_with_role("consumer")[0].index[0])

    @property
    def is_attention(self) -> bool:
        """True for heads."""
        return self.group.kind == "heads"

    def spread(self, values: Tensor) -> Tensor:
        """Return a value for each input of the reader from one for each unit, `(…, U)` → `(…, U m)`."""
        return values.repeat_interleave(self.width, -1)
