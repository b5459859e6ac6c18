"""Input and output of a trace: `ParamSlice` names the blocks of units, `TraceResult` holds their traces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["hessian", "ggn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSlice:
    """Rows of one weight, for each of `U` units.

    Unit `u` consists of the entries of `param` at the positions `index[u]` along axis `dim`. The trace over these
    entries, times `scale[u]` (1 by default), is added to the unit's value.

    Example:
        >>> import torch
        >>> from hessprune.curvature import ParamSlice
        >>> piece = ParamSlice(param="conv1.weight", dim=0, index=torch.arange(6).reshape(3, 2))
        >>> piece.num_units
        3
    """

    param: str
    """Name of a weight that the model passes to a convolution or a linear map."""
    dim: int
    """The axis of the weight along which `index` counts."""
    index: Tensor  # (U, m)
    """The `m` positions of each unit."""
    scale: Tensor | None = None  # (U,)

    @property
    def num_units(self) -> int:
        """Number of units `U`."""
        return self.index.shape[0]


Slices = Mapping[str, Sequence[ParamSlice]]


@dataclass(frozen=True, kw_only=True)
class TraceResult:
    """Traces of the loss Hessian for each unit, with their errors and their cost.

    All tensors are float64 on the CPU, one `(U,)` per key. The loss is the *mean* over samples, or over all counted
    targets where a sample has several.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> result = hp.hessian_trace(net, hp.find_groups(net, x), [(x, torch.arange(16) % 2)])
        >>> result.values["0"].shape
        torch.Size([8])
    """

    values: dict[str, Tensor]
    """The trace of each unit's block."""
    standard_error: dict[str, Tensor] | None = None
    """Standard error of the estimator for these data; None for `exact`, which is not random."""
    sample_error: dict[str, Tensor] | None = None
    """Standard error over samples drawn from a population; None for `hutchinson`."""
    kind: Kind = "hessian"
    """`"hessian"` where the block equals the Hessian's, `"ggn"` for the generalised Gauss–Newton block."""
    estimator: str = "exact"
    precision: str = "fp32"
    num_samples: int = 0
    weight: float = 0.0
    """Divisor of the sum over samples."""
    num_probes: int = 0
    num_rejected: int = 0
    """Probes that were not finite and were repeated at a lower loss scale."""
    num_backwards: int = 0
    """Backward passes, counted per sample chunk of each batch."""
    dropped_mass: float = 0.0
    """Share of the loss curvature in the logits that `exact` left out."""
    settled: bool | None = None
    """True if the decision of `until` has settled; None without `until`."""
    seconds: float = 0.0
    peak_bytes: int = 0
    """Estimated peak of the memory for activations and gradients."""
    probes: dict[str, Tensor] | None = None
    """Each single probe of `hutchinson`, `(num_probes, U)`."""


def probe_error(probes: Tensor) -> Tensor:
    """Return the standard error of the mean over probes `(P, U)`; infinite for a single probe."""
    if len(probes) < 2:
        return torch.full_like(probes[0], torch.inf)
    return probes.std(0) / len(probes) ** 0.5
