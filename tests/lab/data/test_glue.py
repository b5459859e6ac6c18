"""Sentence files: with and without a header, and lines that do not fit."""

import pytest
import torch

from hessprune.errors import DataError
from hessprune.lab.data import read_sentences
from tests.lab.data.samples import SHARED


@pytest.mark.parametrize(
    "text",
    [
        'a "fine" film\t1\ndull\u2028stuff\t0\n',
        'sentence\tlabel\na "fine" film\t1\ndull\u2028stuff\t0',
        'index\tlabel\tsentence\n0\t1\ta "fine" film\n1\t0\tdull\u2028stuff\n',
    ],
    ids=["plain", "header", "columns"],
)
def test_reads(tmp_path, text):
    (tmp_path / "dev.tsv").write_text(text, encoding="utf-8")
    sentences, labels = read_sentences(tmp_path / "dev.tsv")
    assert sentences == ('a "fine" film', "dull\u2028stuff")
    assert torch.equal(labels, torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least one line"),
        ("sentence\tlabel\n", "must hold at least one line"),
        ("fine\t1\nno label\n", "line 2 of .* must be sentence<TAB>label, got 'no label'"),
        ("sentence\tlabel\nfine\tgood\n", "line 2 of .* got 'fine<TAB>good'"),
        ("fine\t1\n\ndull\t0\n", "line 2 of"),
    ],
)
def test_wrong_lines(tmp_path, text, message):
    (tmp_path / "dev.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_sentences(tmp_path / "dev.tsv")


def test_missing_file_and_other_encoding(tmp_path):
    with pytest.raises(DataError, match=r"absent\.tsv' must exist"):
        read_sentences(tmp_path / "absent.tsv")
    (tmp_path / "latin.tsv").write_bytes(b"caf\xe9\t1\n")
    with pytest.raises(DataError, match="must be UTF-8 text"):
        read_sentences(tmp_path / "latin.tsv")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs SST-2 in ../shared/data")
def test_sst2_is_complete():
    for name, rows in (("train", 6920), ("dev", 872), ("test", 1821)):
        sentences, labels = read_sentences(SHARED / "sst2" / f"{name}.tsv")
        assert len(sentences) == len(labels) == rows
        assert set(labels.tolist()) == {0, 1}
