"""Batches of sentences by keyword: functions of (seed, epoch), padded batch by batch, sorted where asked."""

import pytest
import torch

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.batches import as_pair
from hessprune.lab.data.dataset import SPLITS
from hessprune.lab.data.sentences import Sentences
from hessprune.lab.data.text_dataset import TextBatches, TextDataset


def random_sentences(num: int, seed: int = 0) -> Sentences:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (num,), generator=generator)
    tokens = torch.randint(1, 50, (int(lengths.sum()),), generator=generator)
    return Sentences(tokens=tokens, lengths=lengths, labels=torch.arange(num) % 2)


def data(**options) -> TextDataset:
    parts = {split: random_sentences(20, seed) for seed, split in enumerate(SPLITS)}
    return TextDataset(**{"name": "texts", **parts, "num_classes": 2, "fingerprint": "0", "max_length": 16} | options)


def plain(batches) -> list:
    return [{name: tensor.tolist() for name, tensor in batch.items()} for batch in batches]


def seen(batches) -> list[list[int]]:
    """Return the sentences of an epoch without their padding, sorted."""
    pairs = [(batch["input_ids"], batch["attention_mask"]) for batch in batches]
    return sorted(ids[row][mask[row] == 1].tolist() for ids, mask in pairs for row in range(len(ids)))


def padding(batches) -> int:
    return sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_epoch_reads_every_sentence_once(sort, shuffle):
    source = random_sentences(50)
    batches = TextBatches(source, batch_size=8, sort=sort, shuffle=shuffle)
    assert seen(batches) == seen(TextBatches(source, batch_size=50))
    assert len(plain(batches)) == len(batches) == 7
    assert plain(batches) == plain(batches)
    assert plain(batches.iterate(0, 3)) == plain(batches)[3:]
    assert (plain(batches.iterate(1)) == plain(batches)) is not shuffle


def test_sorted_batches_need_less_padding_and_the_short_one_comes_last():
    source = random_sentences(210)
    sizes = [TextBatches(source, batch_size=8, sort=sort, shuffle=True) for sort in (False, True)]
    assert 3 * padding(sizes[1]) < padding(sizes[0])
    assert [len(batch["labels"]) for batch in sizes[1]] == [8] * 26 + [2]
    assert len(list(TextBatches(source, batch_size=8, sort=True, shuffle=True, drop_last=True))) == 26


def test_a_batch_is_a_dict_with_labels_inside():
    inputs, labels = as_pair(next(iter(data().batches("test", 4))))
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert labels.tolist() == [0, 1, 0, 1]


def test_the_example_has_the_most_tokens_and_masked_places():
    example = data().example("calibration", 3)
    assert example["input_ids"].shape == example["attention_mask"].shape == (3, 16)
    lengths = example["attention_mask"].sum(1)
    assert lengths[0] == data().calibration.lengths.max()
    assert data().input_shape == (16,)


def test_train_batches_shuffle_and_drop_the_rest():
    train, test = data(sort=True).batches("train", 8, augment=True), data().batches("test", 8)
    assert (train.shuffle, train.sort, len(train)) == (True, True, 2)
    assert (test.shuffle, test.sort, len(test)) == (False, False, 3)


def test_unusable_settings_are_refused():
    with pytest.raises(ArgumentError, match="`mean` and `std` must be left out for 'texts': its sentences have no"):
        data().with_normalisation((0.5,), (0.5,))
    with pytest.raises(DataError, match="labels in `texts train` must be in"):
        data(num_classes=1)
    with pytest.raises(DataError, match="must hold at least 30 sentences for one batch, got 20"):
        TextBatches(random_sentences(20), batch_size=30, drop_last=True)
    with pytest.raises(DataError, match="split 'test' of 'texts' must hold sentences, got none"):
        data(test=random_sentences(2).subset(torch.tensor([], dtype=torch.int64)))


def test_what_a_report_says():
    facts = data().facts()
    assert (facts["noun"], facts["input_shape"], facts["test"]) == ("sentence", [16], 20)
    assert data(sort=True).reading != data().reading
