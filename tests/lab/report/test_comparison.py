import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from hessprune.errors import DataError
from hessprune.lab.report.comparison import Cell, Comparison, best_in_column
from hessprune.lab.report.comparison_page import accuracy_curves, render, write_comparison


def cell(method: str, accuracy: float, *, seed: int = 0, lr: float | None = None, valid: float | None = None) -> Cell:
    tuned = {"epochs": 0 if lr is None else 2, "lr": lr, "validation_accuracy": valid}
    kept = {"macs": 0.48 + 0.02 * seed, "params": 0.6, "units": 0.7}
    return Cell(method=method, budget=0.5, seed=seed, compensated=False, accuracy=accuracy, loss=1.0, **kept, **tuned)


def comparison(*cells: Cell) -> Comparison:
    methods = tuple(dict.fromkeys(c.method for c in cells))
    dense = {"accuracy": 0.9, "loss": 0.3, "macs": 100, "params": 10, "units": 5}
    return Comparison(
        title="Net <1>",
        quantity="macs",
        methods=methods,
        budgets=(0.5, 0.25),
        dense=dense,
        cells=cells,
        unreachable=("hap: too small",),
        notes=("Accuracy in %.",),
    )


CELLS = (cell("hap", 0.5), cell("hap", 0.7, seed=1), cell("random", 0.4), cell("random", 0.4, seed=1))


def test_rows_are_means_with_the_sample_deviation_over_draws():
    row = comparison(*CELLS).rows(0, False)["hap", 0.5]
    assert row.accuracy == pytest.approx(0.6)
    assert row.spread == pytest.approx(math.sqrt(0.02))
    assert (row.kept, row.num_draws) == (pytest.approx(0.49), 2)
    assert str(row) == "60.0 ± 14.1"
    assert str(replace(row, spread=None)) == "60.0"


def test_a_single_draw_has_no_spread():
    assert comparison(CELLS[0]).rows(0, False)["hap", 0.5].spread is None


def test_the_rate_that_validates_best_counts_whatever_it_does_on_test():
    cells = [
        cell("hap", accuracy, seed=seed, lr=lr, valid=valid)
        for seed in (0, 1)
        for lr, accuracy, valid in ((0.1, 0.9, 0.5), (0.03, 0.8, 0.6))
    ]
    row = comparison(*cells, *CELLS).rows(2, False)["hap", 0.5]
    assert (row.lr, row.accuracy, row.num_draws) == (0.03, 0.8, 2)


def test_a_rate_is_judged_on_the_draws_that_all_rates_had():
    tried = [cell("hap", 0.8, lr=0.03, valid=0.6), cell("hap", 0.9, lr=0.1, valid=0.5)]
    later = [cell("hap", 0.7, seed=seed, lr=0.03, valid=0.3) for seed in (1, 2)]
    row = comparison(*tried, *later).rows(2, False)["hap", 0.5]
    assert (row.lr, row.num_draws) == (0.03, 3)


def test_stages_and_best():
    whole = comparison(*CELLS, cell("hap", 0.8, lr=0.1, valid=0.8))
    assert whole.stages == ((0, False), (2, False))
    assert list(best_in_column(whole.rows(0, False))) == [("hap", 0.5)]


def test_json_round_trip(tmp_path):
    whole = comparison(*CELLS)
    assert Comparison.load(whole.save(tmp_path / "comparison.json")) == whole
    with pytest.raises(DataError, match=r"must be a comparison.json, got one that lacks or misplaces 'methods'"):
        Comparison.from_json({})


def test_the_page_shows_every_number_and_no_markup_of_names():
    page = render(comparison(*CELLS))
    assert "60.0 ± 14.1" in page
    assert "Net &lt;1&gt;" in page
    assert "hap: too small" in page
    assert "<td>–</td>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_curves_are_coloured_by_the_page_or_printed(tmp_path):
    whole = comparison(*CELLS, cell("hap", 0.8, lr=0.1, valid=0.8))
    svg = accuracy_curves(whole)
    assert ElementTree.fromstring(svg.replace("xlink:href", "href")).tag == "svg"
    assert "#0a0a" not in svg
    assert "var(--muted)" in svg
    write_comparison(whole, tmp_path)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "comparison.html").read_text("utf-8") == render(whole)


def test_variants_of_a_method_and_methods_of_users_are_drawn():
    names = ("joint", "joint(temperature=4.0)", "joint(temperature=2.0)", "mine(value=2.0)")
    assert accuracy_curves(comparison(*(cell(name, 0.5) for name in names))).count("<path") > 4


def test_nothing_measured_still_draws():
    assert "<svg" in accuracy_curves(comparison())
