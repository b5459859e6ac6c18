import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import DataError
from hessprune.training.batchnorm import FirstSamples, reestimate_batchnorm


def _batches() -> list:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 2, 5, 5, generator=generator, dtype=torch.float64) * n, None) for n in (2, 3, 4)]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()


def test_statistics_are_the_average_over_batches_and_forget_the_past():
    model = _net().train()
    nn.init.constant_(model[0].running_mean, 100.0)
    result = reestimate_batchnorm(model, _batches())
    images = [images for images, _ in _batches()]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in images]).mean(0)
    variance = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in images]).mean(0)
    assert torch.allclose(result[0].running_mean, mean, rtol=1e-12, atol=1e-14)
    assert torch.allclose(result[0].running_var, variance, rtol=1e-12, atol=0)


def test_later_layers_see_the_batch_statistics_of_earlier_ones_and_no_dropout():
    first, second = reestimate_batchnorm(_net(), _batches()), reestimate_batchnorm(_net(), _batches())
    assert torch.equal(first[3].running_mean, second[3].running_mean)
    model = _net()
    normalised = [nn.functional.batch_norm(x, None, None, training=True, eps=model[0].eps) for x, _ in _batches()]
    outputs = [model[2](batch) for batch in normalised]
    assert torch.allclose(first[3].running_mean, torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0))


def test_only_the_statistics_of_the_copy_change():
    model = _net().train()
    model[3].eval()
    state = torch.get_rng_state()
    result = reestimate_batchnorm(model, _batches())
    assert [module.training for module in result.modules()] == [module.training for module in model.modules()]
    assert result[0].momentum == model[0].momentum == 0.1
    assert torch.equal(model[0].running_mean, torch.zeros(2, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (100, 3)])
def test_the_first_samples_are_whole_batches_and_can_be_read_again(count, batches):
    first = FirstSamples(_batches(), count)
    assert [len(inputs) for inputs, _ in first] == [2, 3, 4][:batches] == [len(inputs) for inputs, _ in first]


def test_a_model_without_batchnorm_reads_no_data():
    model = nn.Sequential(nn.Linear(2, 2), nn.InstanceNorm1d(2))
    assert reestimate_batchnorm(model, iter([])) is not model


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "must hold at least one"), ([(torch.ones(1, 2), None)], "Expected more than 1 value per channel")],
)
def test_data_that_do_not_fit_are_named(batches, message):
    with pytest.raises(DataError, match=message):
        reestimate_batchnorm(nn.BatchNorm1d(2), batches)


class Two(nn.Module):
    """Two inputs, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x + y)).relu())


def test_models_of_two_inputs_are_fine_tuned_with_statistics() -> None:
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    batches = [(x, -x, y), (x, x, y)]
    tuned = hp.finetune(Two(), batches, batches, config=hp.FinetuneConfig(epochs=1)).model
    assert tuned.norm.running_mean.abs().sum() > 0
