"""Scores: accuracy or perplexity, by what was measured, in every place of a report."""

import math
import re
from dataclasses import replace

import pytest

from hessprune.lab.report import CurvePoint, EpochPoint, RunReport, headline, render
from hessprune.lab.report.curve import accuracy_against_cost
from hessprune.lab.report.figures import training
from hessprune.lab.report.formats import format_factor
from hessprune.lab.report.html import cells, columns
from hessprune.lab.report.kept_epochs import kept_epoch, kept_whole
from hessprune.lab.report.scores import ACCURACY, PERPLEXITY, described, score_of
from tests.lab.report.values import small_report

WORDS = {"dense": 20.0, "pruned": 31.0, "finetuned": 23.0}


def of_words() -> RunReport:
    """Return the small report as that of a language model."""
    report = small_report()
    epochs = tuple(
        EpochPoint(
            epoch=n, train_loss=None, validation_loss=math.log(x), validation_accuracy=0.4, validation_perplexity=x
        )
        for n, x in enumerate((31.0, 24.0, 23.0, 25.0))
    )
    points = [
        CurvePoint(method=method, macs_fraction=share, accuracy=0.3, perplexity=value)
        for method, values in (("joint", (22.0, 30.0)), ("magnitude", (80.0, 2000.0)), ("random", (400.0, 2100.0)))
        for share, value in zip((0.9, 0.5), values, strict=True)
    ]
    return replace(
        report,
        models={name: replace(model, perplexity=WORDS[name]) for name, model in report.models.items()},
        baselines={name: replace(model, perplexity=900.0) for name, model in report.baselines.items()},
        validation=WORDS,
        curve=tuple(points),
        history={"finetune": epochs},
    )


def test_what_was_measured_judges():
    assert score_of(small_report()) is ACCURACY
    assert score_of(of_words()) is PERPLEXITY
    assert described(of_words(), of_words().final) == "23"


def test_the_headline_and_the_table_tell_perplexity():
    report = of_words()
    assert headline(report).endswith("perplexity 20 → 23")
    assert columns(report)[0] == "Perplexity"
    assert [cells(report, model)[0] for model in report.models.values()] == [
        ("20", ""),
        ("31", "+55 %"),
        ("23", "+15 %"),
    ]
    page = render(report)
    assert "Perplexity 20 → 23 on 1 000 test images" in page
    assert "Perplexity against cost" in page
    assert "900 before training" in page
    assert "accuracy" not in re.sub(r"validation_accuracy|<details>.*?</details>", "", page).lower()


def test_the_epoch_of_the_lowest_perplexity_was_kept():
    epochs = of_words().history["finetune"]
    assert kept_epoch(epochs) == 2
    assert kept_whole(of_words()) == ()
    worse = tuple(replace(epoch, validation_perplexity=31.0 + epoch.epoch) for epoch in epochs)
    assert kept_whole(replace(of_words(), history={"finetune": worse})) == (
        "Fine-tuning: epoch 0 was kept, training did not improve it.",
    )


@pytest.mark.parametrize("narrow", [False, True])
def test_curves_of_perplexity_have_round_numbers_and_names_apart(narrow):
    svg = accuracy_against_cost(of_words(), narrow)
    assert "validation perplexity" in svg
    ticks = re.findall(r">([\d.e+]+)</text>", svg)
    assert {"20", "50", "100", "200", "500"} <= set(ticks)
    heights = [float(y) for y in re.findall(r"translate\([\d.]+ ([\d.]+)\)[^>]*>(?:magnitude|random)<", svg)]
    heights = heights or [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:magnitude|random)<', svg)]
    assert len(heights) == 2
    assert abs(heights[0] - heights[1]) > 8
    assert "validation perplexity" in training(of_words(), narrow)


def test_factors_are_read_as_changes():
    assert [format_factor(value) for value in (1.0, 1.0004, 0.5, 1.055, 12.3, 4321.0)] == [
        "same perplexity",
        "same perplexity",
        "−50 %",
        "+5.5 %",
        "× 12.3",
        "× 4 321",
    ]
