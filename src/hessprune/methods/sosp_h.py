"""SOSP-H: one Hessian–vector product sees the interactions of all removals at once."""

from dataclasses import dataclass

from hessprune.curvature.direction import weight_curvature
from hessprune.curvature.options import TraceOptions
from hessprune.methods.gates import by_group, gate_derivatives, gradient_options
from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.options import Precision


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class SOSPH(Method):
    """`λ(s) = |θ_sᵀ g| + ½ |θ_sᵀ (H θ_struc)|`, with `θ_s` the weights of unit `s` and `θ_struc` those of all units.

    Evaluation mode; `g` and `H` are the gradient and the Hessian of the mean loss. Costs three to five gradients.

    Args:
        precision: Number format of the passes.
        memory_limit: Bytes for activations and gradients; samples are pushed through in chunks that fit.

    References:
        Nonnenmacher et al. (2022), SOSP, arXiv 2110.11395.

    Example:
        >>> import hessprune as hp
        >>> hp.SOSPH()
        SOSPH(precision='fp32', memory_limit=None)
    """

    name = "sosp-h"
    needs = "gradient"
    precision: Precision = "fp32"
    memory_limit: int | None = None

    def score(self, scoring: Scoring) -> Scores:
        """Take the gradient, then one product with the Hessian."""
        options = gradient_options(self.memory_limit)
        derivatives, slices = gate_derivatives(scoring, "producer", precision=self.precision, options=options)
        second = weight_curvature(
            scoring.model,
            slices,
            scoring.batches,
            loss_fn=scoring.loss_fn,
            precision=self.precision,
            options=TraceOptions(memory_limit=self.memory_limit),
        )
        first = by_group(derivatives.gradient.abs(), slices, scoring.groups)
        return Scores(values={name: v + second[name].abs() / 2 if name in second else v for name, v in first.items()})
