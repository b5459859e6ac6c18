"""The first-order change of the loss when a gate closes."""

from dataclasses import dataclass

from hessprune.methods.gates import by_group, gate_derivatives, gradient_options
from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.options import Precision


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Taylor(Method):
    """Mean over samples of `|∂ℓ_n/∂g_u|`, the first-order change of each sample's loss when the unit's gate closes.

    Costs one forward and one backward pass.

    Args:
        precision: Number format of these passes.
        memory_limit: Bytes for activations and gradients; samples are pushed through in chunks that fit.

    References:
        Molchanov et al. (2017), Pruning Convolutional Neural Networks for Resource Efficient Inference,
        arXiv 1611.06440.

    Example:
        >>> import hessprune as hp
        >>> str(hp.Taylor(precision="bf16"))
        'taylor(precision=bf16)'
    """

    name = "taylor"
    scores_tables = True
    needs = "gradient"
    precision: Precision = "fp32"
    memory_limit: int | None = None

    def needs_whole(self) -> str | None:
        """Return None: one ordinary backward pass."""
        return None

    def score(self, scoring: Scoring) -> Scores:
        """Take the gradient in the gates sample by sample."""
        options = gradient_options(self.memory_limit)
        derivatives, slices = gate_derivatives(scoring, "consumer", precision=self.precision, options=options)
        return Scores(values=by_group(derivatives.absolute_gradient, slices, scoring.groups))
