"""The name of a size that the source code of a forward writes down: where it stands, and its value there."""

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

_FORM = re.compile(
    r"(view|width|scale|split|slice|expand|queries)(?:\((\d+):(\d+) of (\d+) to (\d+):(\d+)\))?\[(\d+) of (\d+)\]=(\d+)"
)


@dataclass(frozen=True, slots=True)
class WrittenSize:
    """A size in the calls of one kind in one forward: where it stands, and its value in the source code."""

    kind: Literal["view", "width", "scale", "split", "slice", "expand", "queries"]
    axis: int
    """The axis of the result; of queries, the head of keys and values that they share."""
    rank: int
    """The number of axes of the result; of queries, that of the heads of keys and values."""
    size: int
    """Of a slice, the whole size of the axis, or the numbers in front of one of its ends.

    Of a width, what the forward computed from the embedding while that was whole: `c // heads`. Of a scale, the width
    of queries and keys whose root torch divides by. Both stay.
    """
    run: tuple[int, int, int, int, int] | None = None
    """Of a view, the axes that hold the same numbers before and after: `first:end` of how many, `first:end`."""

    @classmethod
    def parse(cls, name: str) -> "WrittenSize | None":
        """Read a name; return None for that of an attribute.

        Example:
            >>> WrittenSize.parse("split[2 of 3]=48")
            WrittenSize(kind='split', axis=2, rank=3, size=48, run=None)
        """
        if (form := _FORM.fullmatch(name)) is None:
            return None
        kind, *run, axis, rank, size = form.groups()
        numbers = None if run[0] is None else tuple(map(int, run))
        return cls(kind, int(axis), int(rank), int(size), numbers)  # type: ignore[arg-type]

    @property
    def place(self) -> str:
        """The name without the size."""
        run = "({}:{} of {} to {}:{})".format(*self.run) if self.run else ""
        return f"{self.kind}{run}[{self.axis} of {self.rank}]="

    def name_in(self, module: nn.Module | None) -> str:
        """Return the name; where the module's sizes were lowered before, that of the size in its source code."""
        for name, now in {} if module is None else vars(module).get("written_sizes", {}).items():
            if now == self.size and name.startswith(self.place):
                return name
        return str(self)

    def __str__(self) -> str:
        return f"{self.place}{self.size}"
