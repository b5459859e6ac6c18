import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprune.deploy.evaluation import evaluate
from hessprune.errors import ArgumentError, DataError, NumericalError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )


def _batches(sizes=(4, 4, 1)):
    torch.manual_seed(1)
    return [(torch.randn(n, 1, 8, 8), torch.randint(0, 5, (n,))) for n in sizes]


def test_accuracy_and_loss_are_means_over_samples_not_batches():
    model, batches = _net().train(), _batches()
    inputs, targets = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    model.eval()
    logits = model(inputs).detach()
    model.train()
    result = evaluate(model, batches)
    assert result.num_samples == 9
    assert result.accuracy == (logits.argmax(1) == targets).double().mean().item()
    assert result.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)


def test_mode_random_state_and_buffers_stay_as_they_were():
    model = _net().train()
    model[1].eval()
    samples = [(inputs[0], targets[0]) for inputs, targets in _batches((1, 1, 1))]
    loader = torch.utils.data.DataLoader(samples, shuffle=True)  # type: ignore[arg-type]
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    evaluate(model, loader)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_dense_targets_ignore_unlabelled_positions():
    logits = torch.randn(2, 3, 4, 4)
    targets = torch.randint(0, 3, (2, 4, 4))
    targets[0, 0] = -100
    result = evaluate(nn.Identity(), [(logits, targets)])
    labelled = targets != -100
    assert result.num_samples == 2
    assert result.accuracy == (logits.argmax(1) == targets)[labelled].double().mean().item()
    assert result.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)


def test_a_batch_without_labels_counts_for_nothing():
    known, unknown = (torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([-100, -100]))
    assert evaluate(nn.Identity(), [known, unknown]).loss == evaluate(nn.Identity(), [known]).loss
    with pytest.raises(DataError, match="at least one label that counts"):
        evaluate(nn.Identity(), [unknown])


def test_probabilities_narrow_integers_and_other_losses():
    eye = torch.eye(3)
    assert evaluate(nn.Identity(), [(eye, eye)]).accuracy == 1.0
    assert evaluate(nn.Identity(), [(eye, torch.arange(3, dtype=torch.uint8))]).accuracy == 1.0
    assert evaluate(nn.Identity(), [(eye, eye)], loss_fn=F.mse_loss).loss == 0.0


def test_dict_inputs_and_dict_outputs():
    class Tagged(nn.Module):
        def forward(self, x, scale):
            return {"logits": x * scale}

    inputs = {"x": torch.eye(2), "scale": torch.tensor(2.0)}
    assert evaluate(Tagged(), [(inputs, torch.arange(2))]).loss == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"`batches` must hold at least one \(inputs, targets\) pair"),
        (iter(_batches()), "must be re-iterable, got a one-shot list_iterator"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())], r"got float32 \(2, 3, 8, 8\), in module '0'.*Check size"),
        ([(torch.zeros(2, 1, 8, 8), torch.tensor([0, 5]))], r"must be in \[0, 5\).*from 0 to 5"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(3).long())], r"got int64 \(3,\).*Give labels of shape \(2,\)"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(2))], r"one row of probabilities\) per output, got float32 \(2,\)"),
    ],
)
def test_data_that_do_not_fit_are_named(batches, message):
    with pytest.raises(DataError, match=message):
        evaluate(_net(), batches)


def test_a_model_with_one_output_is_refused():
    with pytest.raises(DataError, match=r"logits of shape \(N, classes, .* got float32 \(2, 1\)"):
        evaluate(nn.Linear(3, 1), [(torch.zeros(2, 3), torch.zeros(2).long())])


def test_non_finite_logits_are_diagnosed():
    model = _net()
    nn.init.constant_(model[5].bias, float("nan"))
    with pytest.raises(NumericalError, match=r"outputs must be finite.*\(a\).*\(b\).*\(c\)"):
        evaluate(model, _batches())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_model_on_an_accelerator_reads_batches_from_the_host():
    here, there = evaluate(_net(), _batches()), evaluate(_net().cuda(), _batches())
    assert there.num_samples == here.num_samples
    assert there.loss == pytest.approx(here.loss, rel=1e-4)


def test_another_loss_sees_the_whole_output_and_any_targets():
    class Two(nn.Module):
        def forward(self, x):
            return {"mean": x.mean(1), "sum": x.sum(1)}

    batches = [(torch.ones(3, 2), {"mean": torch.zeros(3)}), (torch.ones(1, 2), {"mean": torch.zeros(1)})]

    def loss(output, targets):
        return (output["mean"] - targets["mean"]).abs().mean() * len(targets["mean"])

    result = evaluate(Two(), batches, loss_fn=loss, metric=lambda output, _: float(output["sum"].mean()))
    assert result.loss == pytest.approx((3 * 3 + 1) / 4)
    assert (result.accuracy, result.metric, result.num_samples) == (None, 2.0, 4)


def test_ignored_labels_of_a_cross_entropy_do_not_count():
    logits, labels = torch.eye(4)[:, :3] * 5, torch.tensor([0, 1, 255, 0])
    found = evaluate(nn.Identity(), [(logits, labels)], loss_fn=nn.CrossEntropyLoss(ignore_index=255))
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    assert found.loss == pytest.approx(float(expected))
    assert found.accuracy == pytest.approx(3 / 3)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64, "column"])
def test_labels_of_any_integer_type_are_labels(kind):
    labels = torch.tensor([0, 1])
    labels = labels[:, None] if kind == "column" else labels.to(kind)
    assert evaluate(nn.Identity(), [(torch.eye(2), labels)]).accuracy == 1


def test_numbers_that_are_no_probabilities_are_not_taken_for_them():
    with pytest.raises(DataError, match=r"must be class probabilities for cross-entropy.*loss_fn"):
        evaluate(nn.Identity(), [(torch.eye(2), torch.eye(2) * 3)])
    assert evaluate(nn.Identity(), [(torch.eye(2), torch.eye(2) * 3)], loss_fn=nn.MSELoss()).loss == 2


def test_perplexity_counts_words_not_batches():
    torch.manual_seed(0)
    model = nn.Embedding(6, 6)
    batches = [{"input_ids": torch.randint(0, 6, (n, t))} for n, t in ((2, 5), (1, 3))]
    found = evaluate(model_of(model), batches, metric="perplexity")
    guesses = torch.cat([model(b["input_ids"])[:, :-1].flatten(0, 1) for b in batches])
    words = torch.cat([b["input_ids"][:, 1:].flatten() for b in batches])
    mean = F.cross_entropy(guesses, words).item()
    assert found.metric == pytest.approx(math.exp(mean), rel=1e-5)
    assert found.loss == pytest.approx(mean, rel=1e-6)
    assert found.accuracy == pytest.approx((guesses.argmax(-1) == words).double().mean().item())
    assert (found.num_samples, found.lower_is_better) == (3, True)


def model_of(table):
    """Return a language model that knows one word of the past."""

    class Bigrams(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = table

        def forward(self, input_ids):
            return {"logits": self.table(input_ids)}

    return Bigrams()


def test_the_lower_perplexity_ranks_higher():
    words = [{"input_ids": torch.tensor([[0, 1, 2]])}]
    sure = nn.Embedding.from_pretrained(9.0 * torch.eye(3).roll(1, 1))
    better, worse = (evaluate(model_of(t), words, metric="perplexity") for t in (sure, nn.Embedding(3, 3)))
    assert better.metric < worse.metric
    assert better.rank > worse.rank


def test_another_loss_beside_perplexity_is_the_loss():
    words = [{"input_ids": torch.tensor([[0, 1, 2]])}]
    found = evaluate(model_of(nn.Embedding(3, 3)), words, metric="perplexity", loss_fn=lambda *_: torch.tensor(7.0))
    assert found.loss == 7.0
    assert found.metric is not None


def test_texts_without_a_next_word_and_unknown_metrics_are_refused():
    model = model_of(nn.Embedding(3, 3))
    with pytest.raises(DataError, match=r"at least one word that counts.*two words or more"):
        evaluate(model, [{"input_ids": torch.tensor([[0]])}], metric="perplexity")
    with pytest.raises(ArgumentError, match=r"`metric` must be a function.*metric='perplexity'"):
        evaluate(model, [{"input_ids": torch.tensor([[0, 1]])}], metric="bleu")


def test_a_model_without_numbers_is_refused():
    with pytest.raises(NumericalError, match=r"got '0.weight' on the meta device. Call model.to_empty"):
        evaluate(_net().to("meta"), _batches())
