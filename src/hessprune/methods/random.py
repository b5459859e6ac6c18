"""Chance: the baseline that every criterion must beat."""

from dataclasses import dataclass

import torch

from hessprune.methods.method import Method, Scores, Scoring, register


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Random(Method):
    """A random order within each group, the same share of every group: `s_u = (π(u) + ½) / U`.

    Removals are uniform over layers, so a ranking does not divide these saliencies by cost. Data and weights are not
    read.

    Args:
        seed: Of the order; the seed of the call if None.

    Example:
        >>> import hessprune as hp
        >>> str(hp.Random(seed=3))
        'random(seed=3)'
    """

    name = "random"
    needs = None
    per_cost = False
    seed: int | None = None

    def needs_whole(self) -> str | None:
        """Return None: nothing is read."""
        return None

    def score(self, scoring: Scoring) -> Scores:
        """Draw one permutation for each group."""
        generator = torch.Generator().manual_seed(scoring.seed if self.seed is None else self.seed)
        sizes = {group.name: group.num_units for group in scoring.groups}
        orders = {
            name: torch.randperm(size, generator=generator, device="cpu").double() for name, size in sizes.items()
        }
        return Scores(values={name: (order + 0.5) / len(order) for name, order in orders.items()})
