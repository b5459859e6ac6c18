"""SOSP-I: pairwise interactions of removals, chosen greedily."""

from dataclasses import dataclass

from hessprune.curvature.options import TraceOptions
from hessprune.methods.gates import gate_derivatives, interacting_scores
from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.options import Precision


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class SOSPI(Method):
    """`Q_ss' = ½ |θ_sᵀ H θ_s'| + |θ_sᵀ g| δ_ss'` with the Gauss–Newton `H`; units are then chosen greedily.

    Costs one forward pass, at most one backward pass per class, and one product of `(N C, U)` matrices.

    Args:
        precision: Number format of the passes.
        memory_limit: Bytes for activations and gradients; samples are pushed through in chunks that fit.
        interaction_rows: Most rows of a factor of `Q`, from 2; None holds the matrix whole up to 4 096 units.

    References:
        Nonnenmacher et al. (2022), SOSP, arXiv 2110.11395.

    Example:
        >>> import hessprune as hp
        >>> str(hp.SOSPI(interaction_rows=512))
        'sosp-i(interaction_rows=512)'
    """

    name = "sosp-i"
    precision: Precision = "fp32"
    memory_limit: int | None = None
    interaction_rows: int | None = None

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        TraceOptions(interaction_rows=self.interaction_rows, memory_limit=self.memory_limit)

    def needs_whole(self) -> str | None:
        """Return None: ordinary backward passes."""
        return None

    def score(self, scoring: Scoring) -> Scores:
        """Add up the absolute interactions of the producers' gates."""
        options = TraceOptions(memory_limit=self.memory_limit, interaction_rows=self.interaction_rows)
        derivatives, slices = gate_derivatives(scoring, "producer", precision=self.precision, options=options)
        alone = derivatives.gradient.abs() + derivatives.diagonal / 2
        return interacting_scores(alone, derivatives.quadratic.abs(), derivatives, slices, scoring.groups)
