import math

import pytest

from hessprune.errors import ArgumentError
from hessprune.training.schedule import learning_rate


def _rates(total_steps: int, warmup_fraction: float) -> list[float]:
    return [
        learning_rate(step, total_steps=total_steps, peak=2.0, warmup_fraction=warmup_fraction)
        for step in range(total_steps)
    ]


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
def test_rises_to_the_peak_once_then_falls_and_never_reaches_zero(total_steps, warmup_fraction):
    rates = _rates(total_steps, warmup_fraction)
    top = rates.index(max(rates))
    assert rates[top] == 2.0
    assert top == min(round(warmup_fraction * total_steps), total_steps - 1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0


def test_without_warm_up_it_is_half_a_cosine():
    assert _rates(4, 0.0) == pytest.approx([1 + math.cos(math.pi * step / 4) for step in range(4)])


def test_later_steps_keep_the_last_rate():
    assert learning_rate(9, total_steps=4, peak=1.0) == learning_rate(3, total_steps=4, peak=1.0)


@pytest.mark.parametrize(("step", "total_steps", "name"), [(-1, 4, "step"), (0, 0, "total_steps")])
def test_impossible_numbers_are_named(step, total_steps, name):
    with pytest.raises(ArgumentError, match=f"`{name}` must be an integer of at least"):
        learning_rate(step, total_steps=total_steps, peak=1.0)
