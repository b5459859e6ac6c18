"""Mean losses of models over batches."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.objectives.choice import choose_objective
from hessprune.objectives.judging import mean_loss, mean_losses


class Counting(nn.Module):
    """A linear layer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def test_one_pass_of_the_dense_model_judges_all_models() -> None:
    torch.manual_seed(0)
    dense, models = Counting(), [nn.Linear(4, 3) for _ in range(3)]
    batches = [(torch.randn(n, 4), None) for n in (5, 3)]
    objective = choose_objective(dense, batches, None)
    dense.calls = 0
    found = mean_losses(objective, dense, models, batches)
    assert dense.calls == 2
    assert found == [pytest.approx(mean_loss(objective, dense, model, batches)) for model in models]


def test_models_that_draw_are_judged_by_the_same_draws() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    model, batches = Noisy(), [(torch.zeros(6, 3), torch.arange(6) % 3)]
    first, second = mean_losses(choose_objective(model, batches, nn.CrossEntropyLoss()), model, [model, model], batches)
    assert first == second
