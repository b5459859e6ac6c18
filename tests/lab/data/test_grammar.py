"""The built-in sentences: their labels follow from their words, and no test sentence is among the training ones."""

import random

import torch

from hessprune.lab.data import load_dataset
from hessprune.lab.data.grammar import BAD, GOOD, LABELS, MAX_LENGTH, TURNS, WORDS, sentence
from hessprune.lab.models import build_model


def praises(clause):
    """The verdict of one clause, read from its words."""
    words = clause.split()
    return bool({*words} & {*GOOD}) != bool({*words} & {*TURNS})


def label_of(text):
    """The label of a sentence, read from its clauses."""
    text = text.removesuffix(" .")
    if text.startswith("although"):
        return "good" if praises(text.split(" , ")[1]) else "bad"
    if " but " in text:
        return "good" if praises(text.split(" but ")[1]) else "bad"
    verdicts = {praises(clause) for clause in text.split(" and ")}
    return "mixed" if len(verdicts) > 1 else "good" if verdicts.pop() else "bad"


def test_labels_follow_from_the_words():
    draw = random.Random(0)
    for _ in range(500):
        text, label = sentence(draw)
        assert label == label_of(text), text
        assert len(text.split()) <= MAX_LENGTH
        assert {*text.split()} <= {*WORDS}
        assert len({*text.split()} & {*GOOD, *BAD}) >= 1


def test_the_splits_are_those_of_every_machine_and_do_not_overlap():
    data = load_dataset("grammar", validation_size=300, calibration_size=64)
    assert (len(data.train), len(data.validation), len(data.test)) == (2700, 300, 1000)
    assert data.num_classes == len(LABELS)
    pieces = [
        {tuple(row.tolist()) for row in part.tokens.split(part.lengths.tolist())} for part in (data.train, data.test)
    ]
    assert not pieces[0] & pieces[1]
    assert data.test.tokens[:6].tolist() == [WORDS.index(word) for word in FIRST.split()]


FIRST = "although the plot was not lovely"


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = build_model("hessprune.lab.models.text_encoder:TextEncoder", num_classes=3, in_channels=None).eval()
    tokens, mask = torch.randint(1, 60, (2, 5)), torch.ones(2, 5).long()
    longer = {
        "input_ids": torch.cat([tokens, torch.zeros(2, 3).long()], 1),
        "attention_mask": torch.cat([mask, 0 * mask[:, :3]], 1),
    }
    assert torch.allclose(model(**longer), model(tokens, mask), atol=1e-5)
