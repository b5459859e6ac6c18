"""Differences of outputs: what cannot be compared is infinitely different."""

import math

import pytest
import torch

from hessprune.structure.outputs import difference, leaves_of

ONE, NAN, INF = torch.ones(2), torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf])


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (ONE, {"a": ONE}),
        ((ONE, ONE), (ONE,)),
        (ONE, torch.ones(2, 1)),
        (ONE, ONE.long()),
        (ONE, NAN),
        (NAN, ONE),
        (INF, -INF),
        (NAN, INF),
        ((ONE, NAN[1:]), (ONE, NAN[1:])),
        ((ONE, 1), (ONE, 2)),
        ((ONE, None), (ONE, ONE)),
        ((), ()),
        (torch.ones(0), torch.ones(0)),
    ],
)
def test_what_cannot_be_compared(expected, actual) -> None:
    assert difference(expected, actual) == math.inf


def test_each_output_has_its_own_scale() -> None:
    assert difference((ONE * 1e9, ONE), (ONE * 1e9, ONE * 2)) > 1e-6
    assert difference((ONE, ONE * 1e-9), (ONE, ONE * 1e-9 + 1e-14)) < 1e-9


def test_equal_places_without_finite_numbers_pass() -> None:
    assert difference((NAN, INF, 1.5, math.nan), (NAN, INF, 1.5, math.nan)) == 0.0


def test_objects_that_hold_themselves_end() -> None:
    output: dict = {"a": ONE}
    output["self"] = output
    assert list(leaves_of(output)) == [".a"]
