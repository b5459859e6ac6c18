"""What a reader has to know to read the numbers."""

import pytest

from hessprune.lab.assembly import _busy_note


@pytest.mark.parametrize(("p90", "number"), [(1.9, 0), (2.1, 1)])
def test_times_that_are_far_apart_are_said_aloud(p90, number):
    latency = {"dense": {"p10_ms": 1.0, "p90_ms": 1.1}, "int8": {"p10_ms": 1.0, "p90_ms": p90}}
    assert len([*_busy_note(latency)]) == number
