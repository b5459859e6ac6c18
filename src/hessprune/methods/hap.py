"""HAP: the relative Hessian trace of each unit."""

from dataclasses import dataclass
from typing import Any

from hessprune.curvature.options import TraceOptions
from hessprune.curvature.stopping import Until
from hessprune.errors import ArgumentError
from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.options import Estimator, Precision
from hessprune.methods.slices import producer_slices
from hessprune.methods.trace import traces_by_group


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class HAP(Method):
    """HAP's saliency `s_u = Σ_layers Tr(H_uu) ‖w_u‖² / (2 numel(w_u))`, with its standard error.

    A unit's trace is spread evenly over its weights, so that `s_u` is the second-order loss increase `½ wᵀHw` of
    setting them to zero. Folding an evaluation-mode BatchNorm into the convolution before it leaves `s_u` unchanged.

    Args:
        estimator: `"exact"`: a closed form, at most one backward pass per class. `"rademacher"`: one backward pass a
            draw. `"hutchinson"`: the published estimator, one product with the true Hessian a probe.
        precision: Number format of the passes; `"fp16"` needs an accelerator.
        num_probes: Draws of `rademacher` (4 if None) or probes of `hutchinson` (300); none with `exact`.
        until: Draw until this decision has settled; `num_probes` then bounds the draws (64, or 3 000 for `hutchinson`).
        seed: Of the draws; the seed of the call if None.
        memory_limit: Bytes for activations and gradients; samples are pushed through in chunks that fit.

    Raises:
        ArgumentError: An option is out of range, or `num_probes` is given with `exact`.

    References:
        Yu et al. (2022), Hessian-Aware Pruning and Optimal Neural Implant, arXiv 2101.08940.
        Chong, Gupta & Chen (2023), Resource Efficient Neural Networks Using Hessian Based Pruning, arXiv 2306.07030.

    Example:
        >>> import hessprune as hp
        >>> str(hp.HAP(estimator="hutchinson", num_probes=30))
        'hap(estimator=hutchinson,num_probes=30)'
    """

    name = "hap"
    estimator: Estimator = "exact"
    precision: Precision = "fp32"
    num_probes: int | None = None
    until: Until | None = None
    seed: int | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        self._options()
        if self.estimator == "exact" and self.num_probes is not None:
            raise ArgumentError(
                f"`num_probes` must be None with estimator='exact', which draws nothing, got {self.num_probes}. "
                "Use estimator='rademacher' or 'hutchinson'."
            )

    def needs_whole(self) -> str | None:
        """Return None for estimators of ordinary backward passes."""
        return "takes second derivatives" if self.estimator == "hutchinson" else None

    def score(self, scoring: Scoring) -> Scores:
        """Estimate the traces."""
        trace = traces_by_group(
            scoring.model,
            scoring.groups,
            scoring.batches,
            producer_slices(scoring.model, scoring.groups, hap_scale=True),
            estimator=self.estimator,
            loss_fn=scoring.loss_fn,
            precision=self.precision,
            seed=scoring.seed if self.seed is None else self.seed,
            options=self._options(),
        )
        facts: dict[str, Any] = {"estimator": trace.estimator, "precision": trace.precision, "kind": trace.kind}
        facts |= {"num_backwards": trace.num_backwards}
        if trace.settled is not None:
            facts |= {"num_probes": trace.num_probes, "settled": trace.settled}
        return Scores(values=trace.values, standard_error=trace.standard_error, facts=facts)

    def _options(self) -> TraceOptions:
        return TraceOptions(num_probes=self.num_probes, until=self.until, memory_limit=self.memory_limit)
