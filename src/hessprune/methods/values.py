"""What a saliency method returns: one tensor per group, and how it came about."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hessprune.foundation.symmetric import Interactions
from hessprune.structure.groups import ByGroup


class Saliency(ByGroup[Tensor]):
    """Estimated loss increase of every unit, `{group name: (U,)}`; also answers to the `Group` itself.

    A dict for every purpose. Beside it stand `provenance` (method, estimator, seed, data seen), which goes into the
    plan; `per_cost`, whether a ranking should divide by the cost saved unless told otherwise; `standard_error`;
    `interactions`, `(U, U)` over all units in order, where the method knows how removals interact: a tensor, or beyond
    4 096 units a `Factor` with `.rows(units)`, `.block(units, columns)`, `.diagonal()` and `.dense()`.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        provenance: Mapping[str, Any],
        per_cost: bool = True,
        standard_error: Mapping[str, Tensor] | None = None,
        interactions: Tensor | Interactions | None = None,
    ) -> None:
        super().__init__(values)
        self.provenance = dict(provenance)
        self.per_cost = per_cost
        self.standard_error = standard_error
        self.interactions = interactions
