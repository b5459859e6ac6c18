"""Every answer of a factor against the matrix that it stands for, in float64."""

import pytest
import torch
from torch import Tensor

from hessprune.errors import ArgumentError
from hessprune.foundation.symmetric import Dense, Factor, Interactions, as_interactions, interactions_from

PHI = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OWNED = torch.tensor([True, False, True] + [True] * 5 + [False, True, True])
SOME, OTHERS = torch.tensor([4, 0, 7]), torch.tensor([2, 3, 4])


def pairs() -> list[tuple[Interactions, Tensor]]:
    q = PHI.T @ PHI
    return [(Dense(q), q), (Dense(q).abs(), q.abs()), (Factor(PHI), q), (Factor(PHI).abs(), q.abs())]


@pytest.mark.parametrize(("found", "q"), pairs(), ids=["dense", "dense abs", "factor", "factor abs"])
def test_all_forms_answer_as_the_matrix(found: Interactions, q: Tensor) -> None:
    amounts = torch.tensor([1.0, -0.5, 2.0])
    keep = torch.arange(9) % 2 == 0
    wide = torch.zeros(11, 11, dtype=torch.float64)
    wide[OWNED.nonzero(), OWNED.nonzero().T] = q
    assert found.shape == (9, 9)
    for got, expected in (
        (found.dense(), q),
        (found.rows([4, 0, 7]), q[SOME]),
        (found.block(SOME, OTHERS), q[SOME][:, OTHERS]),
        (found.combined(amounts, SOME, OTHERS), amounts.double() @ q[SOME][:, OTHERS]),
        (found.combined(amounts, OTHERS, SOME), amounts.double() @ q[OTHERS][:, SOME]),
        (found.diagonal(), q.diagonal()),
        (found.select(keep).dense(), q[keep][:, keep]),
        (found.select(SOME).dense(), q[SOME][:, SOME]),
        (found.spread(OWNED).dense(), wide),
    ):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_nothing_is_copied_where_all_is_kept() -> None:
    for found in (Dense(PHI.T @ PHI), Factor(PHI)):
        every = torch.ones(9, dtype=torch.bool)
        assert found.select(every) is found
        assert found.spread(every) is found


def test_rows_are_multiplied_in_the_precision_of_the_factor() -> None:
    single = Factor(PHI.float())
    assert single.rows([0]).dtype == torch.float32
    assert single.block([0], [1]).dtype == single.diagonal().dtype == torch.float64
    torch.testing.assert_close(single.rows(range(9)).double(), PHI.T @ PHI, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_tensors_bring_the_same_interactions_back(index: int) -> None:
    found, q = pairs()[index]
    again = interactions_from({"value:a": PHI, **found.tensors()})
    assert again is not None
    assert isinstance(again, Tensor) == isinstance(found.simplest(), Tensor)
    assert torch.equal(as_interactions(again).dense(), as_interactions(found.simplest()).dense())
    torch.testing.assert_close(as_interactions(again).dense(), q, rtol=1e-12, atol=1e-14)
    assert interactions_from({"value:a": PHI}) is None


def test_what_is_not_finite_shows() -> None:
    assert all(found.is_finite() for found, _ in pairs())
    broken = PHI.clone()
    broken[2, 3] = torch.nan
    assert not Factor(broken).is_finite()
    assert not Dense(broken.T @ broken).is_finite()


def test_other_types_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`interactions` must be a tensor \(U, U\) or a `Factor`, got list"):
        as_interactions([[1.0]])  # type: ignore[arg-type]
