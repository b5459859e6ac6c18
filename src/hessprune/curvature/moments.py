"""Running sums over samples, from which values and both of their errors follow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(kw_only=True)
class Moments:
    """Sums over samples of per-unit contributions `q_n`; all tensors `(U,)` in float64 on the CPU."""

    total: Tensor
    """`Σ_n q_n`."""
    square: Tensor
    """`Σ_n q_n²`."""
    draw_variance: Tensor
    """`Σ_n Var(q_n)`, the variance that draws alone leave in the total."""
    num_samples: int = 0
    weight: float = 0.0
    """The divisor `W` of the mean."""
    num_backwards: int = 0
    dropped: float = 0.0
    """Mass of the loss curvature in the logits that was left out, of `mass` altogether."""
    mass: float = 0.0

    @classmethod
    def zeros(cls, num_units: int) -> "Moments":
        """Start empty."""
        total, square, variance = torch.zeros(3, num_units, dtype=torch.float64)
        return cls(total=total, square=square, draw_variance=variance)

    def add(self, draws: Tensor) -> None:  # (D, N, U)
        """Add the contributions of `N` samples, one row for each of `D` independent draws."""
        mean = draws.mean(0)
        self.total += mean.sum(0).cpu()
        self.square += mean.square().sum(0).cpu()
        if len(draws) > 1:
            self.draw_variance += draws.var(0).sum(0).cpu() / len(draws)

    def count(self, samples: int, weight: float, dropped: float = 0.0, mass: float = 0.0) -> None:
        """Count samples, what they add to the divisor, and the mass that was left out of them."""
        self.num_samples += samples
        self.weight += weight
        self.dropped += dropped
        self.mass += mass

    @classmethod
    def average(cls, rounds: "Sequence[Moments]") -> "Moments":
        """Combine independent draws over the *same* samples: totals average, their variance falls."""
        number = len(rounds)
        return replace(
            rounds[-1],
            total=sum((r.total for r in rounds), start=torch.zeros(())) / number,
            square=sum((r.square for r in rounds), start=torch.zeros(())) / number,
            draw_variance=sum((r.draw_variance for r in rounds), start=torch.zeros(())) / number**2,
            num_backwards=sum(r.num_backwards for r in rounds),
        )

    @property
    def value(self) -> Tensor:
        """`Σ_n q_n / W`."""
        return self.total / self.weight

    @property
    def draw_error(self) -> Tensor:
        """Standard error of `value` over draws, the data given."""
        return self.draw_variance.sqrt() / self.weight

    @property
    def sample_error(self) -> Tensor:
        """Standard error of `value` over samples, `√(N Var_n(q_n)) / W`; infinite for a single sample."""
        n = self.num_samples
        if n < 2:
            return torch.full_like(self.total, torch.inf)
        spread = (self.square - self.total.square() / n).clamp(min=0) * n / (n - 1)
        return spread.sqrt() / self.weight
