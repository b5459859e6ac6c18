"""The loss of the next word, in closed form: cross-entropy at each position of a text."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hessprune.foundation.modules import logits_of
from hessprune.foundation.texts import by_name
from hessprune.foundation.words import predicted_words
from hessprune.objectives.closed_form import ClosedForm
from hessprune.objectives.given import GivenLoss
from hessprune.objectives.masks import at_positions, drawn_positions
from hessprune.objectives.objective import BatchLoss


@dataclass(frozen=True, kw_only=True)
class NextWordLoss(GivenLoss):
    """Cross-entropy of the words that positions predict, padding left out; labels are not needed.

    Args:
        loss_fn: A cross-entropy of classes along axis 1; None is the plain one.
        outputs: Not read.
        shift: True where a position predicts the next word of the model's own inputs.
        names: Of the model's inputs, where they stand in a row.
        positions: The number of positions of a text that count, where a vocabulary at all of them would take too much
            memory; None for all.
    """

    shift: bool = True
    names: tuple[str, ...] = ()
    positions: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return the loss, and the number of positions if not all count."""
        return {"loss": "next_word"} | ({} if self.positions is None else {"positions": self.positions})

    def read(self, output: Any, samples: int, inputs: Any = None) -> Tensor:  # noqa: ARG002
        """Return the logits with words along axis 1, `(N, V, T)`."""
        return self._chosen(logits_of(output), by_name(self.names, inputs)).movedim(-1, 1)

    def on(self, inputs: Any, targets: Any, samples: int) -> BatchLoss:
        """Return the loss of one batch."""
        assert self.closed is not None, "cross-entropy has a closed form"
        named = by_name(self.names, inputs)
        words = predicted_words(None, named, targets, shift=self.shift, asker="next_word")
        return ClosedForm(self.closed, self._chosen(words, named), samples)

    def judge(self, output: Any, dense_output: Any, inputs: Any, targets: Any, samples: int) -> tuple[float, float]:
        """Return the mean loss of an output, and the weight of the batch."""
        named = by_name(self.names, inputs)
        words = predicted_words(logits_of(output), named, targets, shift=self.shift, asker="next_word")
        return super().judge(output, dense_output, inputs, self._chosen(words, named), samples)

    def _chosen(self, tensor: Tensor, named: Any) -> Tensor:
        """Return the positions that count of a tensor `(N, T, …)`, for inputs with their names."""
        if self.positions is None:
            return tensor
        return at_positions(tensor, drawn_positions(named, tensor.shape[:2], self.positions))
