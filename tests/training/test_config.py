import pytest

from hessprune.errors import ArgumentError
from hessprune.training.config import FinetuneConfig


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "adam"}, "`optimizer` must be one of 'adamw', 'sgd', got 'adam'. Did you mean 'adamw'"),
        ({"precision": "fp8"}, "`precision` must be one of .*got 'fp8'"),
        ({"epochs": -1}, "`epochs` must be an integer of at least 0, got -1"),
        ({"epochs": 1.5}, "`epochs` must be an integer"),
        ({"seed": -1}, "`seed` must be"),
        ({"checkpoint_every_steps": 0}, "`checkpoint_every_steps` must be an integer of at least 1"),
        ({"lr": 0}, "`lr` must be a finite number above 0, got 0"),
        ({"lr": float("nan")}, "`lr` must be a number"),
        ({"lr": float("inf")}, "`lr` must be a finite number above 0, got inf"),
        ({"clip_norm": 0.0}, "`clip_norm` must be a finite number above 0"),
        ({"distill_temperature": 0}, "`distill_temperature` must be"),
        ({"distill_weight": 1.5}, "`distill_weight` must be a number from 0 to 1, got 1.5"),
        ({"label_smoothing": -0.1}, "`label_smoothing` must be"),
        ({"warmup_fraction": 2}, "`warmup_fraction` must be"),
        ({"momentum": 2}, "`momentum` must be"),
        ({"weight_decay": -1e-4}, "`weight_decay` must be"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ArgumentError, match=message):
        FinetuneConfig(**setting)


def test_no_clipping_is_a_setting():
    assert FinetuneConfig(clip_norm=None).clip_norm is None
