"""Batches in every form that loaders give."""

from collections import UserDict
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import hessprune as hp
from hessprune.foundation.batches import Pairs, Rereadable, as_pair
from tests.provoking import OneStream

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


@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: (array, array), lambda array: {"x": array}])
def test_arrays_are_to_be_made_tensors(wrap):
    with pytest.raises(
        hp.errors.DataError, match=r"got .*ndarray.*\. Make tensors of arrays: torch\.from_numpy\(array\)"
    ):
        as_pair(wrap(np.zeros((2, 3))))


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


class Stream(IterableDataset[Tensor]):
    """Yields samples, without saying how many; `source` is read each time."""

    def __init__(self, source: Iterable[Tensor]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.source)


NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))


@pytest.mark.parametrize("batches", [OneStream(), DataLoader(Stream(iter([*X] * 3)), batch_size=4)])
def test_what_ends_for_good_is_refused(batches: Any) -> None:
    with pytest.raises(hp.errors.DataError, match="gives nothing when it is read again"):
        hp.prune(NET, X, batches, budget=hp.Budget(macs=0.5), method="magnitude")


def test_training_on_nothing_is_refused() -> None:
    config = hp.FinetuneConfig(epochs=2)
    with pytest.raises(hp.errors.DataError, match="`train` must be re-iterable"):
        hp.finetune(NET, OneStream(), [(X, Y)], config=config)


@pytest.mark.parametrize("method", ["joint", "hap", "sosp-i", "magnitude"])
def test_streams_do_not_tell_their_length(method: str) -> None:
    torch.manual_seed(0)
    samples = torch.randn(20, 3)
    stream = DataLoader(Stream([*samples]), batch_size=5)
    found = hp.prune(NET, X, stream, budget=hp.Budget(macs=0.5), method=method)
    again = hp.prune(NET, X, [*samples.split(5)], budget=hp.Budget(macs=0.5), method=method)
    assert found.plan.removed == again.plan.removed


def test_a_batch_of_nothing_does_not_end_the_data() -> None:
    with pytest.raises(hp.errors.DataError, match="got NoneType"):
        hp.prune(NET, X, [(X, Y), None, (X, Y)], budget=hp.Budget(macs=0.5))
    with pytest.raises(hp.errors.DataError, match="got NoneType"):
        hp.finetune(NET, [(X, Y), None], [(X, Y)], config=hp.FinetuneConfig(epochs=1))


@pytest.mark.parametrize("method", ["joint", "hap", "sosp-i", "magnitude"])
def test_an_input_may_belong_to_all_samples(method: str) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enter, self.table, self.leave = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return self.leave((self.enter(x) + self.table(table)).relu())

    model, x, table = Beside().eval(), torch.randn(12, 3), torch.randn(1, 2)
    pruned = hp.prune(model, (x, table), [(x[:8], table), (x[8:], table)], budget=hp.Budget(macs=0.5), method=method)
    assert pruned.model(x, table).shape == (12, 4)


@pytest.mark.parametrize(
    "batches",
    [
        [(X, Y), (X[:1], Y[:1])],
        DataLoader([*X, X[0]], batch_size=3),
        DataLoader([*X, X[0]], batch_sampler=[[0, 1], [2, 3, 4]]),
        DataLoader([*X, X[0], X[1]], batch_size=5, drop_last=True),
        DataLoader(Stream([*X, X[0]]), batch_size=2),
    ],
)
def test_samples_are_counted_in_every_form(batches: Any) -> None:
    assert Rereadable(batches).count() == 5


@pytest.mark.parametrize(
    ("batches", "remedy"),
    [
        ([[[0.1, 0.2, 0.3]] * 5], r"Make a tensor of numbers, padded to one length: torch\.tensor\(numbers\)"),
        ([[X[0], X[1][:2], X[2]]], "Pad samples to one length"),
        ([[*X]], r"Stack samples: torch\.stack\(samples\)"),
        ([(X, X[:1], Y)], r"Give several inputs as \(\(a, b\), targets\)"),
        (
            [(sample, torch.tensor(0)) for sample in X],
            r"Put samples into batches: DataLoader\(dataset",
        ),
        ([(X, torch.tensor(0))], r"Put samples into batches: DataLoader\(dataset"),
        ([(X, Y[:2])], "Give as many targets as inputs"),
    ],
)
def test_what_is_no_batch_is_refused_with_the_way_to_make_one(batches: Any, remedy: str) -> None:
    with pytest.raises(hp.errors.DataError, match=remedy):
        hp.prune(NET, X, batches, budget=hp.Budget(macs=0.5), method="hap")


class Noisy(Dataset[Tensor]):
    """Samples with noise, drawn anew whenever one is read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> Tensor:
        return number + torch.randn(2)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_give_the_same_samples_on_every_pass(persistent: bool) -> None:
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=persistent)
    batches = Rereadable(loader)
    first, second = ([x for x, _ in batches] for _ in range(2))
    torch.testing.assert_close(first, second)
    assert len([*loader]) == 2  # the loader goes on as before
