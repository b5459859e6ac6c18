"""Running sums over samples, and the means and standard errors that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessprune.foundation.processes import summed, summed_numbers


@dataclass(kw_only=True)
class Moments:
    """Sums over samples of the contributions `q_n` of each unit; all tensors are `(U,)` in float64 on the CPU."""

    total: Tensor
    """`Σ_n q_n`."""
    square: Tensor
    """`Σ_n q_n²`."""
    draw_variance: Tensor
    """`Σ_n Var(q_n)`, the variance of the total over draws."""
    num_samples: int = 0
    weight: float = 0.0
    """The divisor `W` of the mean."""
    num_backwards: int = 0
    dropped: float = 0.0
    """Part of `mass` that was left out."""
    mass: float = 0.0
    """Trace of the loss Hessian in the logits, summed over samples."""

    @classmethod
    def zeros(cls, num_units: int) -> "Moments":
        """Return empty sums."""
        total, square, variance = torch.zeros(3, num_units, dtype=torch.float64, device="cpu")
        return cls(total=total, square=square, draw_variance=variance)

    def add(self, draws: Tensor) -> None:  # (D, N, U)
        """Add the contributions of `N` samples, one row for each of `D` independent draws."""
        mean = draws.mean(0)
        self.total += mean.sum(0).cpu()
        self.square += mean.square().sum(0).cpu()
        if len(draws) > 1:
            self.draw_variance += draws.var(0).sum(0).cpu() / len(draws)

    def count(self, samples: int, weight: float, dropped: float = 0.0, mass: float = 0.0) -> None:
        """Count samples, their weight in the divisor, and the part of their mass that was left out."""
        self.num_samples += samples
        self.weight += weight
        self.dropped += dropped
        self.mass += mass

    def over_processes(self) -> "Moments":
        """Return the sums over the samples of all processes."""
        tensors = summed(torch.stack([self.total, self.square, self.draw_variance]))
        counts = summed_numbers(self.num_samples, self.weight, self.num_backwards, self.dropped, self.mass)
        return Moments(
            total=tensors[0],
            square=tensors[1],
            draw_variance=tensors[2],
            num_samples=round(counts[0]),
            weight=counts[1],
            num_backwards=round(counts[2]),
            dropped=counts[3],
            mass=counts[4],
        )

    @classmethod
    def average(cls, rounds: "Sequence[Moments]") -> "Moments":
        """Average independent draws over the *same* samples; the variance over draws falls."""
        number = len(rounds)
        return replace(
            rounds[-1],
            total=sum((r.total for r in rounds), start=torch.zeros((), device="cpu")) / number,
            square=sum((r.square for r in rounds), start=torch.zeros((), device="cpu")) / number,
            draw_variance=sum((r.draw_variance for r in rounds), start=torch.zeros((), device="cpu")) / number**2,
            num_backwards=sum(r.num_backwards for r in rounds),
        )

    @property
    def value(self) -> Tensor:
        """`Σ_n q_n / W`."""
        return self.total / self.weight

    @property
    def draw_error(self) -> Tensor:
        """Standard error of `value` over draws, for these data."""
        return self.draw_variance.sqrt() / self.weight

    @property
    def sample_error(self) -> Tensor:
        """Standard error of `value` over samples, `√(N Var_n(q_n)) / W`; infinite for a single sample."""
        n = self.num_samples
        if n < 2:
            return torch.full_like(self.total, torch.inf)
        spread = (self.square - self.total.square() / n).clamp(min=0) * n / (n - 1)
        return spread.sqrt() / self.weight
