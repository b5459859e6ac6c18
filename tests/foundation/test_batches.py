"""Batches in every form that loaders give."""

from collections import UserDict

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.batches import Pairs, Rereadable, as_pair

X, Y = torch.zeros(4, 3), torch.arange(4)


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return left + scale * right


class WithLabels(nn.Module):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return x + labels[:, None]


FORMS = {
    "tensor": (X, X, None),
    "one in a list": ([X], X, None),
    "pair": ((X, Y), X, Y),
    "pair without targets": ((X, None), X, None),
    "nested": (((X, X), Y), (X, X), Y),
    "mapping": ({"x": X}, {"x": X}, None),
    "mapping with labels": (UserDict(x=X, labels=Y), {"x": X}, Y),
    "mapping with two targets": (
        {"x": X, "start_positions": Y, "end_positions": Y},
        {"x": X},
        {"start_positions": Y, "end_positions": Y},
    ),
    "mapping and targets": (({"x": X}, Y), {"x": X}, Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    batch, inputs, targets = FORMS[form]
    for wrapper in (Pairs, Rereadable):
        (pair,) = list(wrapper([batch]))
        assert str(pair) == str((inputs, targets))


def test_a_model_of_several_arguments_tells_inputs_from_targets() -> None:
    for batch, inputs, targets in (((X, X), (X, X), None), ((X, X, Y), (X, X), Y), (((X, X), Y), (X, X), Y)):
        (pair,) = list(Rereadable.of([batch], Two()))
        assert str(pair) == str((inputs, targets))
    (pair,) = list(Rereadable.of([{"x": X, "labels": Y}], WithLabels()))
    assert set(pair[0]) == {"x", "labels"}


@pytest.mark.parametrize("batch", [(X, Y, Y), "text", (), (X[:0], Y[:0]), {"labels": Y}])
def test_what_is_refused(batch: object) -> None:
    with pytest.raises(hp.errors.DataError, match="`batches` must"):
        as_pair(batch)
