"""Ranks: higher is better, whatever the metric means."""

from hessprune.foundation.ranks import rank_of


def test_the_better_model_ranks_higher() -> None:
    assert rank_of(0.9, None, 1.0) > rank_of(0.8, None, 0.1)
    assert rank_of(0.9, 0.2, 1.0) < rank_of(0.8, 0.3, 1.0)
    assert rank_of(0.9, 20.0, 1.0, lower_is_better=True) > rank_of(0.9, 21.0, 0.1, lower_is_better=True)


def test_the_lower_loss_is_first_among_equals() -> None:
    assert rank_of(None, None, 0.1) > rank_of(None, None, 0.2)
    assert rank_of(None, 20.0, 0.1, lower_is_better=True) > rank_of(None, 20.0, 0.2, lower_is_better=True)
