import re
from dataclasses import replace

import pytest

from hessprune.lab.report import CurvePoint
from hessprune.lab.report.curve import accuracy_against_cost, lines
from tests.lab.report.values import small_report


def drawn_report():
    points = [
        CurvePoint(method=method, macs_fraction=share + draw / 100, accuracy=level + draw / 10, draw=draw, refitted=way)
        for draw in range(2)
        for method, level in (("joint", 0.8), ("magnitude", 0.3))
        for share in (0.6, 0.3)
        for way in (True, False)
    ]
    return replace(small_report(), curve=tuple(points))


def test_draws_are_averaged_budget_by_budget():
    found = lines(drawn_report(), True)
    assert list(found) == ["joint", "magnitude"]
    kept, accuracy, spread = found["joint"][1]
    assert (kept, accuracy) == (pytest.approx(0.305), pytest.approx(0.85))
    assert spread == pytest.approx(0.1 / 2**0.5)


def test_each_way_to_recover_has_a_panel():
    svg = accuracy_against_cost(drawn_report())
    assert "refitted, as by default" in svg
    assert "cut and left as it is" in svg
    assert svg.count(">magnitude<") == 2
    assert "left as it is" not in accuracy_against_cost(small_report())


def test_flat_curves_are_not_magnified():
    flat = [CurvePoint(method="joint", macs_fraction=share, accuracy=0.94) for share in (0.9, 0.5)]
    svg = accuracy_against_cost(replace(small_report(), curve=tuple(flat), validation={"dense": 0.94}))
    ticks = [float(tick) for tick in re.findall(r">([\d.]+) %</text>", svg) if float(tick) not in (90.0, 50.0)]
    assert max(ticks) - min(ticks) >= 2
