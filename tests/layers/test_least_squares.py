"""The ridge never fails, whatever the inputs are."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.layers.least_squares import STRENGTHS, lowest, ridge, solve
from hessprune.layers.sums import Sums


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("with_shift", [True, False])
def test_constant_inputs_have_no_variance_and_a_finite_fit(size: float, with_shift: bool) -> None:
    x = size * torch.tensor([1.1, 3.3, 0.7]).expand(200, 1, 3) * (1 + 1e-7 * torch.randn(200, 1, 3))
    y = torch.ones(200, 1, 2)
    fit = ridge(x, y, torch.zeros(1, 3, 2), held_out=torch.arange(200) < 40, with_shift=with_shift)
    answer = torch.einsum("rgk,gko->rgo", x.double(), fit.weight) + fit.shift
    torch.testing.assert_close(answer, y.double(), rtol=1e-2, atol=1e-2)


def test_a_layer_that_reads_a_constant_is_pruned() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.out = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out((self.b(self.a(torch.full_like(x, 1.7)).relu()) + self.c(x)).relu())

    torch.manual_seed(0)
    model, x = Constant().eval(), torch.randn(64, 4)
    result = hp.prune(model, x[:1], [x], budget=hp.Budget(macs=0.5))
    assert all(bool(tensor.isfinite().all()) for tensor in result.model.state_dict().values())
    assert float((result.model(x) - model(x)).detach().square().mean()) < 0.5 * float(model(x).detach().var())


@pytest.mark.parametrize("lowest_place", range(5))
def test_the_search_finds_the_valley_wherever_it_lies(lowest_place: int) -> None:
    asked: list[int] = []

    def error(place: int) -> float:
        asked.append(place)
        return abs(place - lowest_place - 0.1)

    assert lowest(error)[0] == lowest_place
    assert len(set(asked)) == len(asked)
    assert 1 < lowest_place < 3 or len(asked) in (4, 5)
    assert lowest_place != 2 or len(asked) == 3


@pytest.mark.parametrize("noise", [0.01, 1.0, 30.0])
def test_the_ridge_is_the_best_of_all_strengths(noise: float) -> None:
    torch.manual_seed(0)
    x, old, held_out = torch.randn(60, 1, 20).double(), torch.randn(1, 20, 3).double(), torch.arange(60) < 12
    y = torch.einsum("rgk,gko->rgo", x, old + 0.3) + noise * torch.randn(60, 1, 3)
    fit, test = Sums.of(x[~held_out], y[~held_out]), Sums.of(x[held_out], y[held_out])
    errors = [float(test.error(solve(fit, strength, old)).sum()) for strength in STRENGTHS]
    better = min(errors) < float(test.error(old).sum())
    slow = solve(fit + test, STRENGTHS[errors.index(min(errors))], old) if better else old
    torch.testing.assert_close(ridge(x, y, old, held_out=held_out, with_shift=False).weight, slow)
