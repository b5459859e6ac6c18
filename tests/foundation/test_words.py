"""Next words: sums against a loop over words, and what does not count."""

import math

import pytest
import torch
from torch import Tensor

from hessprune.errors import DataError
from hessprune.foundation.words import next_word, next_words, predicted_words, shifts_words, word_entropy

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


LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])


@pytest.mark.parametrize("labels", [None, WORDS, WORDS.masked_fill(LEFT == 0, -100), WORDS.int()])
@pytest.mark.parametrize("mask", [LEFT, LEFT.bool(), LEFT[:, None, None, :].bool().expand(3, 1, 5, 5)])
def test_the_first_word_behind_padding_on_the_left_is_not_predicted(labels: Tensor | None, mask: Tensor) -> None:
    found = next_words(LOGITS, {"input_ids": WORDS, "attention_mask": mask}, labels)
    kept = [(n, t) for n in range(3) for t in range(1, 5) if LEFT[n, t] and LEFT[n, t - 1]]
    expected = -sum(float(LOGITS[n, t - 1].log_softmax(0)[WORDS[n, t]]) for n, t in kept)
    assert found.number == len(kept) == 9
    assert found.surprise == pytest.approx(expected)


def test_masked_positions_do_not_count_whatever_their_labels() -> None:
    right = LEFT.flip(1)
    batch = {"input_ids": WORDS, "attention_mask": right}
    assert next_words(LOGITS, batch, WORDS) == next_words(LOGITS, batch)
    assert next_words(LOGITS, {"inputs_embeds": torch.zeros(3, 5, 2), "attention_mask": right}, WORDS).number == 9
    assert next_words(LOGITS, {**batch, "decoder_attention_mask": right}, WORDS, shift=False).number == 12
    encoder = {"attention_mask": right, "decoder_input_ids": WORDS}
    assert next_words(LOGITS, encoder, WORDS, shift=False).number == 15  # the mask is the encoder's


def test_the_loss_of_words_is_the_mean_surprise() -> None:
    batch = {"input_ids": WORDS, "attention_mask": LEFT}
    found, words = next_words(LOGITS, batch), predicted_words(LOGITS, batch)
    assert float(word_entropy(LOGITS, words)) == pytest.approx(found.surprise / found.number)
    smoothed = word_entropy(LOGITS, words, smoothing=0.1)
    log = LOGITS.log_softmax(-1)[words >= 0]
    expected = -0.9 * log.gather(1, words[words >= 0][:, None]).mean() - 0.1 * log.mean()
    assert float(smoothed) == pytest.approx(float(expected))
    assert float(word_entropy(LOGITS, torch.full_like(WORDS, -100))) == 0.0


def test_words_of_a_pair_without_labels_are_those_of_its_decoder() -> None:
    inputs = {"input_ids": WORDS.flip(1), "decoder_input_ids": WORDS}
    assert next_words(LOGITS, inputs, shift=False) == next_words(LOGITS, WORDS)
    with pytest.raises(
        DataError, match=r"must hold labels for perplexity of a model that does not predict.*also takes"
    ):
        next_words(LOGITS, {"input_ids": WORDS}, shift=False)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (WORDS + 3, r"must be in \[0, 7\), the model's number of words, got values from 3 to 9"),
        (WORDS - 1, r"must be in \[0, 7\), the model's number of words, got values from -1 to 5"),
        (WORDS + 0.5, "must be integers for perplexity, got float32"),
        (WORDS > 2, "must be integers for perplexity, got bool"),
        (WORDS[:, 0], r"perplexity needs logits \(N, T, words\)"),
        ({"labels": WORDS, "next_sentence_label": WORDS[:, 0]}, r"perplexity needs logits \(N, T, words\)"),
    ],
)
def test_labels_that_are_no_words_are_refused(labels: object, match: str) -> None:
    with pytest.raises(DataError, match=match):
        next_words(LOGITS, WORDS, labels)


def test_masks_that_cannot_be_read_are_refused_unless_labels_say_what_counts() -> None:
    batch = {"input_ids": WORDS, "attention_mask": torch.ones(3, 9)}
    with pytest.raises(DataError, match=r"`attention_mask` in `batches` must say which words .* of the shape \(3, 5\)"):
        next_words(LOGITS, batch)
    assert next_words(LOGITS, batch, WORDS).number == 12


def test_a_loss_without_words_is_refused() -> None:
    with pytest.raises(DataError, match=r"next_word needs logits \(N, T, words\)"):
        next_word(LOGITS, None)


def test_models_that_predict_words_in_their_places_are_known() -> None:
    masked = type("BertForMaskedLM", (), {})
    pair = type("T5", (), {"config": type("Config", (), {"is_encoder_decoder": True})})
    assert [shifts_words(model) for model in (masked(), pair(), object())] == [False, False, True]
