import itertools
import re

from hessprune.lab.report.expansion_page import _apart, accuracy_against_params, render
from tests.lab.report.test_expansion import expansion


def test_the_page_holds_every_row_escaped():
    page = render(expansion())
    assert "Net &lt;A&gt;" in page
    assert "1 &lt; 2" in page
    for name in ("dense", "bottlenecks by joint", "uniform", "unchanged"):
        assert f"<th>{name}<small>" in page
    assert "1 group grew" in page
    assert render(expansion()) == page


def test_models_of_one_size_stand_side_by_side():
    places = sorted(_apart(expansion().rows).values())
    assert all(after - before >= 0.015 * 50 for before, after in itertools.pairwise(places))
    assert len(re.findall(r"uniform</text>", accuracy_against_params(expansion()))) == 1


def test_the_axis_never_shows_less_than_two_points():
    flat = expansion(0.0)
    ticks = [float(t) for t in re.findall(r">([\d.]+) %</text>", accuracy_against_params(flat))]
    assert max(ticks) - min(ticks) >= 1
