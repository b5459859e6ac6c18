"""Next words: sums against a loop over words, and what does not count."""

import math

import pytest
import torch
from torch import Tensor

from hessprune.errors import DataError
from hessprune.foundation.words import next_word, next_words

LOGITS = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WORDS = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))


def one_by_one(words: Tensor, shift: int = 1) -> tuple[float, int]:
    """Return the surprise and the number of words, word by word."""
    total, number = 0.0, 0
    for n, t in ((n, t) for n in range(3) for t in range(shift, 5)):
        if words[n, t] >= 0:
            total -= math.log(float(LOGITS[n, t - shift].softmax(0)[words[n, t]]))
            number += 1
    return total, number


def test_words_are_predicted_by_the_position_before() -> None:
    found = next_words(LOGITS, {"input_ids": WORDS})
    total, number = one_by_one(WORDS)
    assert (found.number, number) == (12, 12)
    assert found.surprise == pytest.approx(total)
    assert found.right == int((LOGITS[:, :-1].argmax(-1) == WORDS[:, 1:]).sum())
    assert float(next_word({"logits": LOGITS}, WORDS)) == pytest.approx(total / 12, rel=1e-6)


def test_padding_and_ignored_labels_do_not_count() -> None:
    mask = torch.ones_like(WORDS)
    mask[0, 3:] = 0
    labels = WORDS.masked_fill(mask == 0, -100)
    total, number = one_by_one(labels)
    for inputs, given in (({"input_ids": WORDS, "attention_mask": mask}, None), (WORDS, labels)):
        found = next_words(LOGITS, inputs, given)
        assert (found.number, number) == (10, 10)
        assert found.surprise == pytest.approx(total)


def test_words_of_a_pair_stand_where_they_are_predicted() -> None:
    found, (total, number) = next_words(LOGITS, {}, WORDS, shift=False), one_by_one(WORDS, shift=0)
    assert found.number == number == 15
    assert found.surprise == pytest.approx(total)


@pytest.mark.parametrize(("logits", "inputs"), [(LOGITS[:, 0], WORDS), (LOGITS, WORDS[:, :3]), (LOGITS, {})])
def test_logits_without_a_word_at_each_position_are_refused(logits: Tensor, inputs: object) -> None:
    with pytest.raises(DataError, match=r"needs logits \(N, T, words\).*Give batches of `input_ids`"):
        next_words(logits, inputs)
