import pytest
import torch

from hessprune.curvature.squares import PANEL, WAITING, Squares
from hessprune.foundation.shelf import Shelf


@pytest.mark.parametrize("sizes", [[3], [1, 2, 3], [WAITING - 1, 1, 5], [2 * WAITING, 7], [5] * 300])
@pytest.mark.parametrize("inputs", [4, PANEL + 3])
def test_squares_are_those_of_all_rows_at_once(sizes, inputs):
    torch.manual_seed(0)
    rows = torch.randn(2, sum(sizes), inputs, dtype=torch.float64)
    squares = Squares(Shelf())
    for part in rows.split(sizes, 1):
        squares.add(part)
    torch.testing.assert_close(squares.total(), rows.mT @ rows, rtol=1e-12, atol=1e-12)


def test_a_sum_goes_on_after_it_was_read():
    squares = Squares(Shelf())
    assert squares.total() is None
    squares.add(torch.tensor([[[1.0, 2.0]]]))
    assert squares.total().tolist() == [[[1.0, 2.0], [2.0, 4.0]]]
    squares.add(torch.tensor([[[1.0, 0.0]]]))
    assert squares.total().tolist() == [[[2.0, 2.0], [2.0, 4.0]]]
