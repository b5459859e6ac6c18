import itertools
import json

import pytest

from hessprune.lab.report.saliencies import NUM_BINS, GroupSaliencies, Saliencies, sparkline

FIRST = GroupSaliencies(group="a", values=(3.0, 0.0, 1.0), standard_error=(0.1, 0.0, 0.1))
FOUND = Saliencies(model="net", method="hap", groups=(FIRST, GroupSaliencies(group="b", values=(100.0, 10.0))))


def test_ends_name_units_in_order():
    assert FIRST.least(2) == [(1, 0.0), (2, 1.0)]
    assert FIRST.most(2) == [(0, 3.0), (2, 1.0)]
    assert len(FIRST.most(9)) == 3


def test_the_histogram_is_logarithmic_over_positive_values_and_loses_none():
    edges = FOUND.edges
    assert (edges[0], edges[-1]) == (pytest.approx(1), pytest.approx(100))
    assert [right / left for left, right in itertools.pairwise(edges)] == pytest.approx([edges[1]] * NUM_BINS)
    counts = FOUND.histogram([0.0, 1.0, 3.0, 10.5, 100.0])
    assert sum(counts) == 5
    assert (counts[0], counts[NUM_BINS // 2], counts[-1]) == (2, 1, 1)


def test_equal_or_absent_values_have_a_histogram_too():
    flat = Saliencies(model="net", method="random", groups=(GroupSaliencies(group="a", values=(0.0, 0.0)),))
    assert sum(flat.histogram((0.0, 0.0))) == 2


def test_json_holds_values_and_histogram(tmp_path):
    document = json.loads(FOUND.save(tmp_path / "saliency.json").read_text("utf-8"))
    assert document["groups"][0]["values"] == [3.0, 0.0, 1.0]
    assert sum(document["histogram"]["counts"]) == 5
    assert len(document["histogram"]["edges"]) == NUM_BINS + 1


def test_a_sparkline_shows_every_unit():
    assert sparkline([1, 0, 100]) == "▁ █"
    assert sparkline([0, 0]) == "  "
