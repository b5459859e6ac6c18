"""What goes into a trace and what comes out: `ParamSlice` names the blocks, `TraceResult` holds their traces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hessprune.errors import ArgumentError

Kind = Literal["hessian", "ggn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSlice:
    """The rows of one weight that belong to each of `U` units.

    Unit `u` owns the entries of `param` at the positions `index[u]` along axis `dim`; the trace over these entries
    enters the unit's value times `scale[u]` (1 by default).

    Example:
        >>> import torch
        >>> piece = ParamSlice(param="conv1.weight", dim=0, index=torch.arange(6).reshape(3, 2))
        >>> piece.num_units
        3
    """

    param: str
    """Name of a weight that the model passes to a convolution or a linear map."""
    dim: int
    """The axis of the weight along which `index` counts."""
    index: Tensor  # (U, m)
    """For each unit the `m` positions it owns."""
    scale: Tensor | None = None  # (U,)

    @property
    def num_units(self) -> int:
        """Number of units `U`."""
        return self.index.shape[0]


Slices = Mapping[str, Sequence[ParamSlice]]


@dataclass(frozen=True, kw_only=True)
class TraceResult:
    """Per-unit traces of the loss Hessian, with their errors and what they cost.

    All tensors are float64 on the CPU, one `(U,)` per key. The loss is the *mean* over samples (over all counted
    targets where a sample has several).
    """

    values: dict[str, Tensor]
    """The trace of each unit's block."""
    standard_error: dict[str, Tensor] | None = None
    """Standard error of the estimator given these data; None for `exact`, which has none."""
    sample_error: dict[str, Tensor] | None = None
    """Standard error from having seen only these samples of a population; None for `hutchinson`."""
    kind: Kind = "hessian"
    """`"hessian"` where the block equals the Hessian's, `"ggn"` for the generalised Gauss–Newton block."""
    estimator: str = "exact"
    precision: str = "fp32"
    num_samples: int = 0
    weight: float = 0.0
    """What the sum over samples was divided by."""
    num_probes: int = 0
    num_rejected: int = 0
    """Probes that were not finite and were repeated at a lower loss scale."""
    num_backwards: int = 0
    """Backward passes, counted per sample chunk of each batch."""
    dropped_mass: float = 0.0
    """Share of the loss curvature in the logits that `exact` left out."""
    settled: bool | None = None
    """Whether the decision given as `until` has settled; None without `until`."""
    seconds: float = 0.0
    peak_bytes: int = 0
    """Estimated peak of the memory for activations and gradients."""
    probes: dict[str, Tensor] | None = None
    """Every single probe of `hutchinson`, `(num_probes, U)`, so that results over parts of the data merge."""


def probe_error(probes: Tensor) -> Tensor:
    """Return the standard error of the mean over probes `(P, U)`; infinite for a single one."""
    if len(probes) < 2:
        return torch.full_like(probes[0], torch.inf)
    return probes.std(0) / len(probes) ** 0.5


def merge_results(parts: Sequence[TraceResult]) -> TraceResult:
    r"""Combine results over disjoint parts of the data into the result over all of them.

    With `W_i` the divisors of the means, `value = Σ_i W_i value_i / Σ_i W_i`. Draws depend on the seed and on a
    sample's position alone, so parts computed with their `first_sample` merge into what one run would give. Sample
    errors add as independent ones do, which leaves out the spread between the parts' means.

    Args:
        parts: Results of one estimator with one seed and one number of probes, over disjoint samples.

    Returns:
        The merged result.

    Raises:
        ArgumentError: `parts` is empty, or mixes estimators, numbers of probes or keys.

    Example:
        >>> halves = [TraceResult(values={"a": torch.tensor([value])}, weight=1.0) for value in (1.0, 3.0)]
        >>> merge_results(halves).values["a"]
        tensor([2.])
    """
    if len({(part.estimator, part.num_probes, *part.values) for part in parts}) != 1:
        found = sorted({(part.estimator, part.num_probes, len(part.values)) for part in parts})
        raise ArgumentError(
            f"`parts` must share estimator, number of probes and keys, got {found}. Repeat the same call on each part."
        )
    total = sum(part.weight for part in parts)
    shares = [part.weight / total for part in parts]
    probes = _mean(shares, [part.probes for part in parts])
    errors = _root_of_squares(shares, [part.standard_error for part in parts])
    return replace(
        parts[0],
        values=_mean(shares, [part.values for part in parts]) or {},
        standard_error={key: probe_error(x) for key, x in probes.items()} if probes else errors,
        sample_error=_root_of_squares(shares, [part.sample_error for part in parts]),
        kind="ggn" if any(part.kind == "ggn" for part in parts) else "hessian",
        probes=probes,
        weight=total,
        dropped_mass=sum(share * part.dropped_mass for share, part in zip(shares, parts, strict=True)),
        peak_bytes=max(part.peak_bytes for part in parts),
        **{name: sum(getattr(part, name) for part in parts) for name in _ADDED},
    )


_ADDED = ("num_samples", "num_rejected", "num_backwards", "seconds")
_ByKey = Mapping[str, Tensor] | None


def _mean(shares: Sequence[float], parts: Sequence[_ByKey]) -> dict[str, Tensor] | None:
    """Average by share, key by key."""
    return _combine(
        parts, lambda items: sum((s * x for s, x in zip(shares, items, strict=True)), start=torch.zeros(()))
    )


def _root_of_squares(shares: Sequence[float], parts: Sequence[_ByKey]) -> dict[str, Tensor] | None:
    """Add independent errors, key by key."""
    squares = [None if part is None else {key: x.square() for key, x in part.items()} for part in parts]
    summed = _mean([share**2 for share in shares], squares)
    return summed and {key: x.sqrt() for key, x in summed.items()}


def _combine(parts: Sequence[_ByKey], function: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor] | None:
    if any(part is None for part in parts):
        return None
    return {key: function([part[key] for part in parts if part is not None]) for key in parts[0] or ()}
