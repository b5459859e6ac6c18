"""Built-in sentences: verdicts on films, drawn from a small grammar, for which nothing has to be downloaded.

A sentence has one clause or two. A clause praises or blames; `not` and `hardly` turn it around. What follows `but`
counts alone, and so does what does not stand behind `although`. Two clauses beside each other count both.
"""

import random
from collections.abc import Sequence

import torch

from hessprune.lab.data.dataset import set_aside
from hessprune.lab.data.sentences import Sentences
from hessprune.lab.data.text_dataset import TextDataset

GOOD = ("bright", "clever", "fine", "funny", "gripping", "lovely", "moving", "sharp", "superb", "tender", "warm")
BAD = ("awful", "boring", "clumsy", "cold", "dull", "feeble", "grim", "hollow", "lame", "muddled", "stale")
NOUNS = ("acting", "camera", "cast", "dialogue", "ending", "film", "hero", "music", "pace", "plot", "scene", "script")
ADVERBS = ("quite", "really", "rather", "so", "very")
TURNS = ("hardly", "not")
ASIDES = ("that everybody talks about", "we saw on monday", "of the second half", "made for the young")
JOINTS = ("and", "but", "although")
LABELS = ("bad", "good", "mixed")
_ASIDE_WORDS = tuple(word for aside in ASIDES for word in aside.split())
_EVERY = ("<pad>", "the", "was", ",", ".", *JOINTS, *GOOD, *BAD, *NOUNS, *ADVERBS, *TURNS, *_ASIDE_WORDS)
WORDS = tuple(dict.fromkeys(_EVERY))
"""The vocabulary; a token is a place in it."""
MAX_LENGTH = 24
TRAIN_SIZE, TEST_SIZE = 3000, 1000
SEED = 1998  # fixed: the test sentences stay the same whatever seed splits the rest


def read_grammar(*, seed: int, validation_size: int | None, calibration_size: int) -> TextDataset:
    """Return 3 000 training and 1 000 test sentences; no test sentence is among the training ones.

    Args:
        seed: Decides which training sentences are set aside.
        validation_size: Sentences held out; `None` for a tenth.
        calibration_size: Sentences of the rest to measure saliency on; at most all of them.
    """
    draw, drawn = random.Random(SEED), dict[str, str]()
    while len(drawn) < TRAIN_SIZE + TEST_SIZE:
        text, label = sentence(draw)
        drawn.setdefault(text, label)
    pairs = list(drawn.items())
    train, test = _numbers(pairs[:TRAIN_SIZE]), _numbers(pairs[TRAIN_SIZE:])
    sizes = (validation_size, calibration_size)
    return TextDataset(
        name="a small grammar",
        **set_aside("grammar", train, test, seed=seed, sizes=sizes, noun="sentence"),
        num_classes=len(LABELS),
        max_length=MAX_LENGTH,
        sort=True,
    )


def sentence(draw: random.Random) -> tuple[str, str]:
    """Draw a sentence and its label.

    Example:
        >>> sentence(random.Random(3))
        ('the scene was tender and the dialogue was hollow .', 'mixed')
    """
    first, is_good = _clause(draw)
    joint = draw.choice((*JOINTS, ""))
    if not joint:
        return f"{first} .", _verdict(is_good)
    second, is_also_good = _clause(draw)
    if joint == "although":
        return f"although {first} , {second} .", _verdict(is_also_good)
    if joint == "but":
        return f"{first} but {second} .", _verdict(is_also_good)
    return f"{first} and {second} .", _verdict(is_good) if is_good == is_also_good else "mixed"


def _clause(draw: random.Random) -> tuple[str, bool]:
    """Draw a clause, and whether it praises."""
    is_good, turned = draw.random() < 0.5, draw.random() < 0.35
    aside = [draw.choice(ASIDES)] if draw.random() < 0.25 else []
    adverb = [draw.choice(ADVERBS)] if not turned and draw.random() < 0.5 else []
    turn = [draw.choice(TURNS)] if turned else []
    words = ["the", draw.choice(NOUNS), *aside, "was", *turn, *adverb, draw.choice(GOOD if is_good else BAD)]
    return " ".join(words), is_good != turned


def _verdict(is_good: bool) -> str:
    return "good" if is_good else "bad"


def _numbers(pairs: Sequence[tuple[str, str]]) -> Sentences:
    place = {word: number for number, word in enumerate(WORDS)}
    tokens = [[place[word] for word in text.split()] for text, _ in pairs]
    return Sentences(
        tokens=torch.tensor([token for row in tokens for token in row], dtype=torch.int64, device="cpu"),
        lengths=torch.tensor([len(row) for row in tokens], dtype=torch.int64, device="cpu"),
        labels=torch.tensor([LABELS.index(label) for _, label in pairs], dtype=torch.int64, device="cpu"),
    )
