"""The order of models: by metric or accuracy, then by loss."""


def rank_of(
    accuracy: float | None, metric: float | None, loss: float, *, lower_is_better: bool = False
) -> tuple[float, float]:
    """Return a number that is higher for better models, by metric or accuracy, and the negative loss for equals.

    Example:
        >>> from hessprune.foundation.ranks import rank_of
        >>> rank_of(0.9, None, 0.3) > rank_of(0.9, None, 0.4)
        True
        >>> rank_of(None, 20.0, 3.0, lower_is_better=True) > rank_of(None, 30.0, 3.4, lower_is_better=True)
        True
    """
    best = accuracy if metric is None else -metric if lower_is_better else metric
    return (0.0 if best is None else best), -loss
