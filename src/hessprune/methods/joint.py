"""The joint criterion: the loss of removals that interact, with or without a refit of the survivors."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hessprune.curvature.elimination_path import eliminated_losses
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.softening import softened
from hessprune.foundation.checks import check_range
from hessprune.methods.gates import by_group, gate_derivatives, interacting_scores, role_slices
from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.options import Precision


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Joint(Method):
    """The loss left to pay after a refit, or signed interactions of gates where there will be none.

    With a refit, units of a group are eliminated one after another, the layers that read them taking over each time.
    Without the inputs `J` of a unit, a layer's weights `W` change and cost

        ΔW = −P_{:J} P_JJ⁻¹ W_J ,    ½ tr(W_Jᵀ P_JJ⁻¹ W_J G) ,

    with `P` the inverse covariance of the inputs and `G` the curvature of the loss in the outputs. The cheapest unit
    goes; its saliency is the step of the loss at its turn, measured by how far all `ΔW` together move the logits.
    Without a refit, removing a set `M` of units costs `½ 1_Mᵀ Q 1_M`, where `Q` is the signed Gauss–Newton matrix of
    one gate per unit at its consumers; units are then chosen greedily.

    Cost: one forward and backward pass over the batches, one over 256 samples of them (nine backward passes for ten
    classes), and `O(K³)` for a layer of `K` inputs. Without a refit: at most one backward pass per class.

    Args:
        temperature: Of the softmax in which the criterion sees classes. `"auto"` is 1 with a refit; without
            one it is the lowest temperature at which half of the samples carry the curvature, for a network is sure
            of the samples it was trained on and these have none at 1.
        refit: Whether the survivors will be refitted; None follows `compensate` of `hp.prune`, and is True elsewhere.
        precision: Number format of the passes.
        memory_limit: Bytes for activations, gradients and, with a refit, statistics of layers; half of what is free if
            None. Samples are pushed through in chunks that fit; statistics beyond the limit lie in files.
        interaction_rows: Most rows of a factor of `Q`, from 2; None holds the matrix whole up to 4 096 units.

    References:
        Hassibi & Stork (1992), Second order derivatives for network pruning: Optimal Brain Surgeon.
        Kurtić, Frantar & Alistarh (2023), ZipLM, arXiv 2302.04089: the elimination of structures.

    Example:
        >>> import hessprune as hp
        >>> str(hp.Joint(temperature=4.0))
        'joint(temperature=4.0)'
    """

    name = "joint"
    scores_tables = True
    needs = "dense outputs"
    temperature: float | Literal["auto"] = "auto"
    refit: bool | None = None
    precision: Precision = "fp32"
    memory_limit: int | None = None
    interaction_rows: int | None = None

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.temperature != "auto":
            check_range("temperature", self.temperature, low=1e-3, high=1e3)
        self._options()

    def with_refit(self, refit: bool) -> "Joint":
        """Fill in whether the survivors will be refitted, where that was left open."""
        return replace(self, refit=refit) if self.refit is None else self

    def needs_whole(self) -> str | None:
        """Return None without a refit: ordinary backward passes."""
        return None if self.refit is False else "refits whole layers"

    def score(self, scoring: Scoring) -> Scores:
        """Eliminate units one after another, or add up the interactions of their gates."""
        # After a refit the effect of removals on the loss is measured; only without one does curvature stand for it.
        refit = self.refit is not False
        temperature = 1.0 if refit and self.temperature == "auto" else self.temperature
        loss_fn, temperature = softened(scoring.model, scoring.batches, scoring.loss_fn, temperature=temperature)
        scores = self._after_elimination(scoring, loss_fn) if refit else self._from_gates(scoring, loss_fn)
        return replace(scores, facts={**scores.facts, "temperature": round(temperature, 4), "compensated": refit})

    def _options(self) -> TraceOptions:
        return TraceOptions(memory_limit=self.memory_limit, interaction_rows=self.interaction_rows)

    def _from_gates(self, scoring: Scoring, loss_fn: Any) -> Scores:
        """Score by signed interactions: closing a gate is removing the unit, biases and normalisation included."""
        options = self._options()
        derivatives, slices = gate_derivatives(
            scoring, "consumer", precision=self.precision, options=options, loss_fn=loss_fn
        )
        return interacting_scores(derivatives.diagonal / 2, derivatives.quadratic, derivatives, slices, scoring.groups)

    def _after_elimination(self, scoring: Scoring, loss_fn: Any) -> Scores:
        """Score by the steps of the loss along the order of elimination."""
        slices = role_slices(scoring.groups, "consumer")
        unread = [group for group in scoring.groups if group.name not in slices]
        values = self._alone(replace(scoring, groups=unread), loss_fn) if unread else {}
        if not slices:
            return Scores(values=values)
        paths = eliminated_losses(
            scoring.model,
            slices,
            scoring.batches,
            loss_fn=loss_fn,
            precision=self.precision,
            seed=scoring.seed,
            options=self._options(),
            moments=scoring.moments,
        )
        for name, path in paths.items():
            values[name] = torch.empty_like(path.loss)
            values[name][path.order] = rising_steps(path.loss.diff(prepend=path.loss.new_zeros(1)))
        return Scores(values=values)

    def _alone(self, scoring: Scoring, loss_fn: Any) -> dict[str, Tensor]:
        """Score units that no layer reads by a weight of its own, as of tied weights, each by itself: `½ Q_uu`."""
        derivatives, slices = gate_derivatives(
            scoring, "consumer", precision=self.precision, options=self._options(), loss_fn=loss_fn
        )
        return by_group(derivatives.diagonal / 2, slices, scoring.groups)


def rising_steps(steps: Tensor) -> Tensor:
    """Return the nearest strictly rising sequence, so that sorting by loss gives the order of elimination.

    Neighbours that fall are averaged (pool adjacent violators); a nudge far below the values separates equal ones.
    """
    blocks: list[tuple[float, int]] = []
    for step in steps.tolist():
        blocks.append((step, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (right, n), (left, m) = blocks.pop(), blocks.pop()
            blocks.append(((left * m + right * n) / (m + n), m + n))
    level = torch.cat([torch.full((n,), value, dtype=torch.float64, device="cpu") for value, n in blocks]).clamp(min=0)
    nudge = 1e-9 * max(float(level.max()), 1e-30) / len(level)
    return level + nudge * torch.arange(len(level), dtype=torch.float64, device="cpu")
