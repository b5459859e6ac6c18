"""A run of fine-tuning as a value: its goal, its data, and where it stands."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hessprune.training.config import FinetuneConfig
from hessprune.training.goal import Goal
from hessprune.training.learner import Learner
from hessprune.training.resume import Progress, Vault
from hessprune.training.schedule import learning_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """A run of fine-tuning: what goes in, the model in training, and where it stands."""

    train: Iterable[Any]
    validation: Iterable[Any]
    config: FinetuneConfig
    steps_per_epoch: int
    learner: Learner
    goal: Goal
    vault: Vault
    progress: Progress

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, 1 at least."""
        return max(1, self.config.epochs * self.steps_per_epoch)

    def taken(self, step: int) -> int:
        """Return the steps of the whole run so far, `step` batches into the current epoch."""
        return (self.progress.epoch - 1) * self.steps_per_epoch + step

    def rate(self, step: int) -> float:
        """Return the learning rate, `step` batches into the current epoch."""
        return learning_rate(
            self.taken(step),
            total_steps=self.total_steps,
            peak=self.config.lr,
            warmup_fraction=self.config.warmup_fraction,
        )
