"""Sums of `φ φᵀ` against the dense product, whole and with a bounded number of rows."""

import pytest
import torch
from torch import Tensor

from hessprune.curvature.accumulate import DENSE_UNITS, DenseSum, FactorSum, new_sum
from hessprune.curvature.options import TraceOptions
from hessprune.errors import ArgumentError
from hessprune.foundation.symmetric import Factor, WholeMatrix


def rows(number: int, decay: float = 0.0) -> Tensor:
    phi = torch.randn(number, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return phi * torch.exp(-decay * torch.arange(12))


@pytest.mark.parametrize("size", [1, 7, 600])
def test_rows_that_fit_are_kept_as_they_are(size: int) -> None:
    phi = rows(700)
    whole, factor = DenseSum(12), FactorSum(12, 1000)
    for part in phi.split(size):
        whole.add(part)
        factor.add(part)
    expected = phi.T @ phi / 3
    assert (whole.dropped, factor.dropped) == (0, 0)
    torch.testing.assert_close(whole.result(3.0).dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factor.result(3.0).dense(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("capacity", [2, 3, 8, 9])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_what_is_let_go_is_semi_definite_and_its_trace_is_stated(capacity: int, size: int) -> None:
    phi, total = rows(100, decay=0.5), FactorSum(12, capacity)
    for part in phi.split(size):
        total.add(part)
    found = total.result(1.0)
    assert isinstance(found, Factor)
    assert len(found.phi) <= capacity
    error = phi.T @ phi - found.dense()
    assert float(torch.linalg.eigvalsh(error)[0]) > -1e-10
    assert total.dropped == pytest.approx(float(error.trace()), rel=1e-9)
    assert float(error.abs().max()) <= total.dropped


def test_one_compression_keeps_the_main_directions() -> None:
    """Of 8 rows the best 4: no factor of 4 rows has a smaller trace left."""
    phi, total = rows(9), FactorSum(12, 8)
    total.add(phi[:8])
    total.add(phi[8:])
    assert total.dropped == pytest.approx(float(torch.linalg.svdvals(phi[:8])[4:].square().sum()), rel=1e-10)


def test_rows_within_the_capacity_s_half_dimensions_lose_nothing() -> None:
    basis, mix = rows(4), torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    total = FactorSum(12, 8)
    for part in (mix @ basis).split(3):
        total.add(part)
    expected = basis.T @ mix.T @ mix @ basis
    torch.testing.assert_close(total.result(1.0).dense(), expected, rtol=1e-10, atol=1e-9)
    assert total.dropped <= 1e-12 * float(expected.trace())


def test_single_precision_stays_single_and_is_repeatable() -> None:
    found = []
    for _ in range(2):
        total = FactorSum(12, 8)
        for part in rows(100).float().split(5):
            total.add(part)
        found.append(total.result(100.0).phi)  # type: ignore[attr-defined]
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


def test_the_form_follows_the_number_of_units() -> None:
    assert isinstance(new_sum(DENSE_UNITS, None), DenseSum)
    assert isinstance(new_sum(DENSE_UNITS + 1, None), FactorSum)
    assert isinstance(new_sum(3, 2), FactorSum)
    assert isinstance(new_sum(3, None).result(1.0), WholeMatrix)
    assert new_sum(DENSE_UNITS + 1, 4).result(1.0).shape == (DENSE_UNITS + 1, DENSE_UNITS + 1)


@pytest.mark.parametrize("value", [1, 2.5])
def test_wrong_numbers_of_rows(value: float) -> None:
    with pytest.raises(ArgumentError, match=f"`interaction_rows` must be an integer of at least 2, got {value}"):
        TraceOptions(interaction_rows=value)  # type: ignore[arg-type]
