"""NViT's score: the square of the first-order change of the loss without a unit's weights."""

from dataclasses import dataclass

from hessprune.curvature.gate_interactions import gate_interactions
from hessprune.methods.gates import by_group, gradient_options, role_slices
from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.options import Precision


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class NViT(Method):
    """`s_u = (Σ w·∂L/∂w)²` over all weights `w` of the unit: those that emit it, and those that read it.

    `L` is the mean loss of the calibration samples. The paper subtracts a share of the milliseconds that a unit saves;
    here a budget in milliseconds weighs them: `hp.Budget(latency_ms="50%")`. Costs one forward and one backward pass.

    Args:
        precision: Number format of these passes.
        memory_limit: Bytes for activations and gradients; samples are pushed through in chunks that fit.

    References:
        Yang et al. (2023), Global Vision Transformer Pruning with Hessian-Aware Saliency, arXiv 2110.04869.

    Example:
        >>> import hessprune as hp
        >>> str(hp.NViT(precision="bf16"))
        'nvit(precision=bf16)'
    """

    name = "nvit"
    needs = "gradient"
    precision: Precision = "fp32"
    memory_limit: int | None = None

    def needs_whole(self) -> str | None:
        """Return None: one ordinary backward pass."""
        return None

    def score(self, scoring: Scoring) -> Scores:
        """Take the gradient in gates on producers and consumers alike."""
        emitting, reading = (role_slices(scoring.groups, role, scoring.model) for role in ("producer", "consumer"))
        slices = {
            group.name: [*emitting.get(group.name, []), *reading.get(group.name, [])]
            for group in scoring.groups
            if group.name in emitting or group.name in reading
        }
        derivatives = gate_interactions(
            scoring.model,
            slices,
            scoring.batches,
            loss_fn=scoring.loss_fn,
            precision=self.precision,
            options=gradient_options(self.memory_limit),
        )
        return Scores(values=by_group(derivatives.gradient.square(), slices, scoring.groups))
