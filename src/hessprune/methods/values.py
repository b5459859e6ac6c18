"""The saliencies that a method returns: one tensor per group, and how they came about."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hessprune.foundation.checks import optional_import
from hessprune.foundation.formatting import html_table
from hessprune.foundation.symmetric import SymmetricMatrix
from hessprune.structure.groups import ByGroup


class Saliency(ByGroup[Tensor]):
    """Estimated loss increase of every unit, `{group name: (U,)}`; also answers to the `Group` itself.

    A dict for every purpose. Beside it stand `provenance` (method, options, seed, number of samples), which goes into
    the plan; `per_cost`, whether a ranking divides by the cost saved unless told otherwise; `standard_error`; and
    `interactions`, `(U, U)` over all units in order, where the method knows how removals interact: a tensor, or beyond
    4 096 units a `Factor` with `.rows(units)`, `.block(units, columns)`, `.diagonal()` and `.dense()`.

    Example:
        >>> import torch
        >>> from hessprune.methods.values import Saliency
        >>> Saliency({"conv1": torch.tensor([1.0, 3.0])}, provenance={"method": "magnitude", "options": "magnitude"})
        Saliency by magnitude: 2 units in 1 group, from 1 to 3, median 1
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        provenance: Mapping[str, Any],
        per_cost: bool = True,
        standard_error: Mapping[str, Tensor] | None = None,
        interactions: Tensor | SymmetricMatrix | None = None,
    ) -> None:
        super().__init__(values)
        self.provenance = dict(provenance)
        self.per_cost = per_cost
        self.standard_error = standard_error
        self.interactions = interactions

    def __repr__(self) -> str:
        """Return one line: method, size and range."""
        if not self:
            return "Saliency of no units"
        units = torch.cat(list(self.values()))
        low, middle, high = (float(value) for value in (units.min(), units.median(), units.max()))
        size = f"{len(units)} units in {len(self)} group" + "s" * (len(self) != 1)
        return f"Saliency by {self._method}: {size}, from {low:.3g} to {high:.3g}, median {middle:.3g}"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Return a table with a row for each group."""
        rows = [
            [name, len(values), *(f"{float(value):.3g}" for value in (values.min(), values.median(), values.max()))]
            for name, values in self.items()
        ]
        return html_table(["group", "units", "least", "median", "most"], rows, caption=f"Saliency by {self._method}")

    @property
    def unseen(self) -> tuple[str, ...]:
        """Groups that no output in the loss depends on: nothing is known of their worth, and plans leave them whole."""
        return tuple(self.provenance.get("unseen", ()))

    @property
    def _method(self) -> str:
        return str(self.provenance.get("options", self.provenance.get("method", "an unnamed method")))

    def plot(self) -> Any:
        """Draw the sorted saliencies of every group on a logarithmic axis.

        Returns:
            A matplotlib figure.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        pyplot = optional_import("matplotlib.figure", "report")
        figure = pyplot.Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for name, values in self.items():
            units = values.sort().values
            axes.plot((torch.arange(len(units), device="cpu") + 0.5) / len(units), units.clamp(min=1e-30), label=name)
        axes.set(xlabel="share of the group's units", ylabel="saliency", title=f"Saliency by {self._method}")
        if any(bool((values > 0).any()) for values in self.values()):
            axes.set_yscale("log")
        if len(self) <= 12:
            axes.legend(fontsize="small")
        return figure
