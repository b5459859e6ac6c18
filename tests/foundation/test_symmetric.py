"""Whole matrices and factors against the matrix that they stand for, in float64."""

import pytest
import torch
from torch import Tensor

from hessprune.errors import ArgumentError
from hessprune.foundation.symmetric import Factor, SymmetricMatrix, WholeMatrix, as_symmetric, symmetric_from

PHI = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([True, False, True] + [True] * 5 + [False, True, True])
SOME, OTHERS = torch.tensor([4, 0, 7]), torch.tensor([2, 3, 4])


def pairs() -> list[tuple[SymmetricMatrix, Tensor]]:
    q = PHI.T @ PHI
    return [(WholeMatrix(q), q), (WholeMatrix(q).abs(), q.abs()), (Factor(PHI), q), (Factor(PHI).abs(), q.abs())]


@pytest.mark.parametrize(("matrix", "q"), pairs(), ids=["dense", "dense abs", "factor", "factor abs"])
def test_all_forms_answer_as_the_matrix(matrix: SymmetricMatrix, q: Tensor) -> None:
    amounts = torch.tensor([1.0, -0.5, 2.0])
    keep = torch.arange(9) % 2 == 0
    wide = torch.zeros(11, 11, dtype=torch.float64)
    wide[MASK.nonzero(), MASK.nonzero().T] = q
    assert matrix.shape == (9, 9)
    for got, expected in (
        (matrix.dense(), q),
        (matrix.rows([4, 0, 7]), q[SOME]),
        (matrix.block(SOME, OTHERS), q[SOME][:, OTHERS]),
        (matrix.combined(amounts, SOME, OTHERS), amounts.double() @ q[SOME][:, OTHERS]),
        (matrix.combined(amounts, OTHERS, SOME), amounts.double() @ q[OTHERS][:, SOME]),
        (matrix.diagonal(), q.diagonal()),
        (matrix.select(keep).dense(), q[keep][:, keep]),
        (matrix.select(SOME).dense(), q[SOME][:, SOME]),
        (matrix.spread(MASK).dense(), wide),
    ):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_nothing_is_copied_where_all_is_kept() -> None:
    for matrix in (WholeMatrix(PHI.T @ PHI), Factor(PHI)):
        every = torch.ones(9, dtype=torch.bool)
        assert matrix.select(every) is matrix
        assert matrix.spread(every) is matrix


def test_rows_are_multiplied_in_the_precision_of_the_factor() -> None:
    single = Factor(PHI.float())
    assert single.rows([0]).dtype == torch.float32
    assert single.block([0], [1]).dtype == single.diagonal().dtype == torch.float64
    torch.testing.assert_close(single.rows(range(9)).double(), PHI.T @ PHI, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_tensors_restore_the_same_matrix(index: int) -> None:
    matrix, q = pairs()[index]
    again = symmetric_from({"value:a": PHI, **matrix.tensors("pairs")}, "pairs")
    assert again is not None
    assert isinstance(again, Tensor) == isinstance(matrix.simplest(), Tensor)
    assert torch.equal(as_symmetric(again).dense(), as_symmetric(matrix.simplest()).dense())
    torch.testing.assert_close(as_symmetric(again).dense(), q, rtol=1e-12, atol=1e-14)
    assert symmetric_from({"value:a": PHI}, "pairs") is None


def test_entries_that_are_not_finite_are_found() -> None:
    assert all(matrix.is_finite() for matrix, _ in pairs())
    broken = PHI.clone()
    broken[2, 3] = torch.nan
    assert not Factor(broken).is_finite()
    assert not WholeMatrix(broken.T @ broken).is_finite()


def test_other_types_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`interactions` must be a tensor \(U, U\) or a `Factor`, got list"):
        as_symmetric([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`pairs` must be a tensor"):
        as_symmetric(1, "pairs")  # type: ignore[arg-type]
