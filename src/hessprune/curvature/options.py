"""Options of an estimator: effort and memory."""

from dataclasses import dataclass

from hessprune.curvature.stopping import Until
from hessprune.foundation.checks import check_range

DEFAULT_TOLERANCE = {"exact": 1e-6, "rademacher": 1e-6, "hutchinson": 1e-3}
"""Share of the loss curvature that may be left out in single precision; it lies far below the noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceOptions:
    """Effort and memory; the defaults suit almost everybody."""

    num_probes: int | None = None
    """Draws of `rademacher` (default 4) or probes of `hutchinson` (300); with `until` the maximum (64, 3000)."""
    until: Until | None = None
    """Stop as soon as this decision has settled."""
    tolerance: float | None = None
    """Share of the loss curvature in the logits that may be left out; None: 0 in fp64, else `DEFAULT_TOLERANCE`."""
    memory_limit: int | None = None
    """Bytes for activations and gradients; samples run in chunks that fit."""
    activations: float = 1.0
    """Share of `memory_limit` that is for activations and gradients; the rest is for statistics."""
    chunk_size: int | None = None
    """Samples in a chunk; None: as many as fit into the processor's cache."""
    interaction_rows: int | None = None
    """Most rows of a factor of the gates' interactions, at least 2; None: 4 096, and the whole matrix for up to 4 096
    units."""

    def __post_init__(self) -> None:
        if self.interaction_rows is not None:
            check_range("interaction_rows", self.interaction_rows, low=2, integer=True)
        for name in ("num_probes", "memory_limit", "chunk_size"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low=1, integer=True)
        if self.tolerance is not None:
            check_range("tolerance", self.tolerance, low=0, high=1)

    def probes(self, estimator: str) -> int:
        """Return the maximum number of draws or probes of an estimator."""
        default = {"rademacher": (4, 64), "hutchinson": (300, 3000)}[estimator][self.until is not None]
        return self.num_probes or default

    def rounds(self, estimator: str) -> list[range]:
        """Return the draws or probes of each round, all rounds of one size; without `until` there is one round."""
        total = self.probes(estimator)
        step = min(self.until.draws_per_round, total) if self.until else total
        return [range(start, start + step) for start in range(0, total - step + 1, step)]
