"""Running text: its way back from tokens set apart, its sequences and splits, and what is refused."""

import pytest
import torch

from hessprune.errors import ArgumentError, DataError
from hessprune.lab.data import TextReading, load_dataset
from hessprune.lab.data.wikitext import detokenised
from tests.huggingface import write_text, write_tokenizer


@pytest.fixture
def reading(tmp_path):
    return TextReading(tokenizer=write_tokenizer(tmp_path / "model"), max_length=8)


@pytest.fixture
def folder(tmp_path):
    return write_text(tmp_path / "wikitext2")


def load(folder, reading, **options):
    return load_dataset(
        "wikitext", root=folder, text=reading, **{"validation_size": 4, "calibration_size": 6} | options
    )


def test_marks_go_back_where_they_belong():
    written = "He did n't pay 1 @,@ 000 ( or \" so \" ) : it 's well @-@ known ; 3 @.@ 5 % [ of it ] !\n = Title = \n"
    plain = "He didn't pay 1,000 (or \"so\"): it's well-known; 3.5% [of it]!\n = Title = \n"
    assert detokenised(written) == plain
    assert detokenised('a " quote " and " another "') == 'a "quote" and "another"'


def test_sequences_are_equally_long_and_splits_do_not_leak(folder, reading):
    data = load(folder, reading)
    assert [len(data.part(split)) for split in ("train", "validation", "calibration", "test")] == [26, 4, 6, 10]
    assert (data.name, data.input_shape, data.has_classes, data.noun) == ("wikitext2", (8,), False, "text")
    assert "classes" not in data.facts()
    held_out, rest = (data.part(split).tokens.view(-1, 8).tolist() for split in ("validation", "train"))
    assert not [row for row in held_out if row in rest]
    assert data.with_calibration(3).fingerprint != data.fingerprint


def test_words_of_a_file_follow_each_other_and_the_end_is_dropped(folder, reading):
    batches = list(load(folder, reading).batches("test", 4))
    words = torch.cat([batch["input_ids"] for batch in batches]).flatten()
    text = (folder / "test.txt").read_text().split()
    vocabulary = {word: int(number) for word, number in zip(text, words, strict=False)}
    assert [vocabulary[word] for word in text[: len(words)]] == words.tolist()
    assert [batch["input_ids"].shape[0] for batch in batches] == [4, 4, 2]
    assert set(batches[0]) == {"input_ids"}


def test_sequences_to_train_on_have_labels(folder, reading):
    batch = next(iter(load(folder, reading).batches("train", 3, seed=1)))
    assert batch["input_ids"].shape == (3, 8)
    assert torch.equal(batch["input_ids"], batch["labels"])


def test_training_text_is_preferred_and_the_first_test_samples_are_looked_at(folder, reading):
    (folder / "train.txt").write_text("a fine film " * 40)
    data = load(folder, reading, test_size=3)
    assert [len(data.part(split)) for split in ("train", "validation", "test")] == [11, 4, 3]
    assert torch.equal(data.test.tokens, load(folder, reading).test.tokens[:24])
    assert data.fingerprint != load(folder, reading).fingerprint
    assert data.example("test", 2)["input_ids"].shape == (2, 8)
    with pytest.raises(ArgumentError, match="`test_size`"):
        load(folder, reading, test_size=0)


def test_what_is_missing_or_too_short_is_named(folder, reading):
    with pytest.raises(ArgumentError, match="`tokenizer` must be given for source 'wikitext'"):
        load(folder, None)
    (folder / "test.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"test.txt' must be UTF-8 text.*Convert it"):
        load(folder, reading)
    (folder / "test.txt").write_text("a film")
    with pytest.raises(DataError, match=r"must hold 8 tokens for one sequence, got 2. Lower max_length"):
        load(folder, reading)
    (folder / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"must hold test.txt, and train.txt or valid.txt"):
        load(folder, reading)
