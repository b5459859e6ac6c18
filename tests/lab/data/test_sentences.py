"""Sentences as tokens: cut, padded, selected and told apart."""

import re
import sys

import pytest
import torch

from hessprune.errors import ArgumentError, DataError, MissingDependencyError
from hessprune.lab.data.sentences import Sentences, TextReading, load_tokenizer, tokenise
from tests.huggingface import write_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(TextReading(tokenizer=write_tokenizer(tmp_path), max_length=5))


def sentences(tokenizer, *texts: str) -> Sentences:
    return tokenise(tokenizer, texts, torch.arange(len(texts)), "here")


def test_sentences_are_cut_and_padded_to_the_longest(tokenizer):
    found = sentences(tokenizer, "a film", "a", "the film was good and the plot fine")
    batch = found.read(torch.tensor([1, 0]))
    assert batch["input_ids"].tolist() == [[2, 4, 3, 0], [2, 4, 10, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert found.lengths.tolist() == [4, 3, 5]
    assert found.read(torch.tensor([1]), 6)["input_ids"].shape == (1, 6)


def test_a_subset_reads_the_same(tokenizer):
    found = sentences(tokenizer, "a film", "a", "the film was good", "slow")
    chosen = found.subset(torch.tensor([3, 0]))
    for name, tensor in chosen.read(torch.tensor([0, 1])).items():
        assert torch.equal(tensor, found.read(torch.tensor([3, 0]))[name])
    assert chosen.labels.tolist() == [3, 0]
    assert len(found.subset(torch.tensor([], dtype=torch.int64))) == 0


def test_digests_tell_tokens_borders_labels_and_padding_apart():
    base = {"tokens": torch.tensor([5, 6, 7]), "lengths": torch.tensor([1, 2]), "labels": torch.tensor([0, 1])}
    changes = [{}, {"lengths": torch.tensor([2, 1])}, {"labels": torch.tensor([1, 1])}, {"pad": 1}]
    changes.append({"tokens": torch.tensor([5, 6, 8])})
    assert len({Sentences(**base | change).digest() for change in changes}) == 5


def test_the_tokenizer_may_be_a_file_and_names_its_padding(tmp_path, tokenizer):
    again = load_tokenizer(TextReading(tokenizer=tmp_path / "tokenizer.json", max_length=5))
    again.enable_padding(pad_id=9, pad_token="film")
    assert sentences(again, "a", "a film").pad == 9
    assert sentences(tokenizer, "a").pad == 0


def test_what_cannot_be_read_is_one_clear_error(tmp_path, tokenizer, monkeypatch):
    with pytest.raises(ArgumentError, match=r"`tokenizer` must be a file tokenizer.json or a folder that holds one"):
        load_tokenizer(TextReading(tokenizer=tmp_path / "absent"))
    with pytest.raises(ArgumentError, match=r"`max_length` must be an integer from 1 to 65536, got 0"):
        TextReading(tokenizer=tmp_path, max_length=0)
    tokenizer.post_processor = None
    with pytest.raises(DataError, match=re.escape("sentence 2 of 'here' must have a token, got ''. Remove it.")):
        sentences(tokenizer, "a", "")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"must hold a tokenizer, got: .*Save the tokenizer again"):
        load_tokenizer(TextReading(tokenizer=tmp_path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hessprune\[text\]'"):
        load_tokenizer(TextReading(tokenizer=tmp_path))
