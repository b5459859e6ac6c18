"""Batches in every form that loaders give."""

from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.batches import Pairs, Rereadable, as_pair

X, Y = torch.zeros(4, 3), torch.arange(4)


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return left + scale * right


class WithLabels(nn.Module):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return x + labels[:, None]


FORMS = {
    "tensor": (X, X, None),
    "one in a list": ([X], X, None),
    "pair": ((X, Y), X, Y),
    "pair without targets": ((X, None), X, None),
    "nested": (((X, X), Y), (X, X), Y),
    "mapping": ({"x": X}, {"x": X}, None),
    "mapping with labels": (UserDict(x=X, labels=Y), {"x": X}, Y),
    "mapping with two targets": (
        {"x": X, "start_positions": Y, "end_positions": Y},
        {"x": X},
        {"start_positions": Y, "end_positions": Y},
    ),
    "mapping and targets": (({"x": X}, Y), {"x": X}, Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    batch, inputs, targets = FORMS[form]
    for wrapper in (Pairs, Rereadable):
        (pair,) = list(wrapper([batch]))
        assert str(pair) == str((inputs, targets))


def test_a_model_of_several_arguments_tells_inputs_from_targets() -> None:
    for batch, inputs, targets in (((X, X), (X, X), None), ((X, X, Y), (X, X), Y), (((X, X), Y), (X, X), Y)):
        (pair,) = list(Rereadable.of([batch], Two()))
        assert str(pair) == str((inputs, targets))
    (pair,) = list(Rereadable.of([{"x": X, "labels": Y}], WithLabels()))
    assert set(pair[0]) == {"x", "labels"}


@pytest.mark.parametrize("batch", [(X, Y, Y), "text", (), (X[:0], Y[:0]), {"labels": Y}])
def test_what_is_refused(batch: object) -> None:
    with pytest.raises(hp.errors.DataError, match="`batches` must"):
        as_pair(batch)


class Pair(nn.Module):
    """An encoder–decoder pair, as transformers describe theirs."""

    def __init__(self, start: int | None = 1, *, by_itself: bool = False) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=start, pad_token_id=0)
        if by_itself:
            self.prepare_decoder_input_ids_from_labels = lambda labels: labels + 1

    def can_generate(self) -> bool:
        return True

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return input_ids + decoder_input_ids


LABELS = torch.tensor([[5, 6, 2], [7, 2, -100], [3, 4, 2], [3, 2, -100]])


def test_pairs_receive_the_words_before_each_label() -> None:
    batch = {"input_ids": LABELS, "labels": LABELS}
    for read in (Pairs([batch], Pair()), Rereadable([batch], model=Pair())):
        ((inputs, targets),) = read
        assert targets is LABELS
        assert inputs["decoder_input_ids"].tolist() == [[1, 5, 6], [1, 7, 2], [1, 3, 4], [1, 3, 2]]
    ((inputs, _),) = Pairs([batch], Pair(by_itself=True))
    assert torch.equal(inputs["decoder_input_ids"], LABELS + 1)


def test_inputs_stay_where_a_decoder_has_its_own_or_labels_are_no_words() -> None:
    own = {"input_ids": LABELS, "decoder_input_ids": LABELS, "labels": LABELS}
    for batch in (own, {"input_ids": LABELS}, {"input_ids": LABELS, "labels": Y}, (LABELS, LABELS)):
        ((inputs, _),) = Pairs([batch], Pair())
        assert inputs is LABELS or "decoder_input_ids" not in inputs or inputs["decoder_input_ids"] is LABELS
    ((inputs, _),) = Pairs([{"input_ids": LABELS, "labels": LABELS}], Two())
    assert list(inputs) == ["input_ids"]


def test_a_pair_without_a_first_word_says_so() -> None:
    with pytest.raises(hp.errors.DataError, match="decoder_start_token_id and pad_token_id, got None and 0"):
        list(Pairs([{"input_ids": LABELS, "labels": LABELS}], Pair(None)))
