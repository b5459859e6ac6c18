"""Inputs that stay stand for those that go, as a ridge regression on the inputs themselves would have it."""

import pytest
import torch

from hessprune.layers.input_moments import DAMPING, InputMoments


@pytest.mark.parametrize("centred", [True, False])
def test_the_takeover_is_that_of_a_ridge_regression(centred: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    x += 3
    mean, kept, gone = x.mean(0), torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])
    held = InputMoments(mean=mean[None], covariance=torch.cov(x.T, correction=0)[None], rows=50)
    rows = x - mean if centred else x
    ridge = DAMPING * rows.square().mean(0).mean()
    padded = torch.cat([rows[:, kept], (50 * ridge).sqrt() * torch.eye(3, dtype=torch.float64)])
    goal = torch.cat([rows[:, gone], torch.zeros(3, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(padded, goal).solution
    weight = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    found = held.takeover(kept, gone, weight[None], centred=centred)[0]
    torch.testing.assert_close(found, expected @ weight, rtol=1e-8, atol=1e-10)


def test_constant_inputs_are_no_obstacle() -> None:
    held = InputMoments(mean=torch.ones(1, 3), covariance=torch.zeros(1, 3, 3), rows=5)
    new = held.takeover(torch.tensor([0, 1]), torch.tensor([2]), torch.ones(1, 1, 4), centred=True)
    assert new.isfinite().all()
