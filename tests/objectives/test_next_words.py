"""The loss of the next word against cross-entropy word by word, its Hessian, and padding on either side."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.modules import call_model
from hessprune.foundation.words import next_word
from hessprune.objectives.choice import choose_objective
from hessprune.objectives.judging import mean_loss
from hessprune.objectives.next_words import NextWordLoss

WORDS = torch.randint(1, 7, (6, 5), generator=torch.Generator().manual_seed(0))
PAD = torch.zeros(6, 3, dtype=torch.int64)
MASK = torch.ones_like(WORDS)


class Bigrams(nn.Module):
    """A language model that sees one word, so that padding changes nothing but what counts."""

    def __init__(self, words: int = 7) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.head = nn.Embedding(words, 4), nn.Linear(4, 8), nn.Linear(8, words)
        self.double().eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        del attention_mask
        return {"logits": self.head(self.inner(self.table(input_ids)).relu())}


def padded(*, left: bool, labels: bool = False) -> dict[str, Tensor]:
    """Return the words with padding on one side, as a collator gives them."""
    pair = [(PAD, WORDS), (PAD, MASK)] if left else [(WORDS, PAD), (MASK, PAD)]
    ids, mask = (torch.cat(parts, 1) for parts in pair)
    return {"input_ids": ids, "attention_mask": mask} | ({"labels": ids.clone()} if labels else {})


FORMS: dict[str, Any] = {
    "words alone": WORDS,
    "dict": {"input_ids": WORDS},
    "padded on the right": padded(left=False),
    "padded on the left": padded(left=True),
    "left, in a row": ((*padded(left=True).values(),), padded(left=True)["input_ids"]),
    "right, labels are clones": padded(left=False, labels=True),
    "left, labels are clones": padded(left=True, labels=True),
}


def expected(model: nn.Module) -> float:
    logits = call_model(model, WORDS)["logits"]
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), WORDS[:, 1:].flatten()).detach())


@pytest.mark.parametrize("form", FORMS)
def test_every_stage_measures_the_same_loss_in_every_form(form: str) -> None:
    model, batches = Bigrams(), [FORMS[form]]
    value = expected(model)
    found = hp.evaluate(model, batches, metric="perplexity")
    assert found.loss == pytest.approx(value, rel=1e-6)
    assert found.metric == pytest.approx(float(torch.tensor(value).exp()), rel=1e-5)
    assert hp.evaluate(model, batches, loss_fn="next_word") == hp.evaluate(model, batches, loss_fn=next_word)
    assert hp.evaluate(model, batches, loss_fn="next_word").loss == pytest.approx(value, rel=1e-6)
    pairs = [hp_pair(FORMS[form])]
    objective = choose_objective(model, batches, "next_word")
    assert mean_loss(objective, model, model, pairs) == pytest.approx(value, rel=1e-6)
    trained = hp.finetune(model, batches, batches, config=hp.FinetuneConfig(epochs=1, lr=1e-9), metric="perplexity")
    assert trained.history[1].train_loss == pytest.approx(value, rel=1e-6)


def hp_pair(batch: Any) -> tuple[Any, Any]:
    """Split a batch into inputs and labels."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, tuple):
        return batch
    return {key: value for key, value in batch.items() if key != "labels"}, batch.get("labels")


@pytest.mark.parametrize(
    ("method", "loss_fn"),
    [("joint(refit=false)", "next_word"), ("hap", "next_word"), ("taylor", "next_word"), ("hap", None)],
)
def test_padding_on_either_side_changes_no_saliency(method: str, loss_fn: str | None) -> None:
    model = Bigrams()
    group = [group for group in hp.find_groups(model, {"input_ids": WORDS[:1]}) if group.name == "inner"]
    found = [
        hp.saliency(model, group, [form], method=method, loss_fn=loss_fn)["inner"]
        for form in (padded(left=False), padded(left=True), ((*padded(left=True).values(),), None))
    ]
    assert bool(found[0].any())
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-6)


def test_the_hessian_is_that_of_cross_entropy() -> None:
    model, inputs = Bigrams(), padded(left=True)
    objective = choose_objective(model, [inputs], "next_word")
    assert isinstance(objective, NextWordLoss)
    assert objective.facts() == {"loss": "next_word"}
    values = objective.read(call_model(model, inputs), 6).detach()
    loss = objective.on(inputs, None, 6)
    one = torch.arange(1)

    def of_first(flat: Tensor) -> Tensor:
        return loss.loss(torch.cat([flat.view(1, *values.shape[1:]), values[1:]]), torch.arange(6))

    hessian = torch.func.hessian(of_first)(values[0].flatten())
    factor = loss.factor(values)
    mass = factor.mass[0].sum() / factor.weight
    assert float(mass) == pytest.approx(float(hessian.diagonal().sum()), rel=1e-6)
    assert loss.weight() == 6 * 4
    assert loss.weight(one) == 4


def test_a_large_vocabulary_counts_at_some_positions() -> None:
    torch.manual_seed(0)
    words = torch.randint(0, 4000, (2, 600))
    objective = choose_objective(Bigrams(4000).float(), [words], "next_word")
    positions = objective.facts()["positions"]
    assert 8 <= positions < 600
    values = objective.read(torch.zeros(2, 600, 4000), 2)
    assert values.shape == (2, 4000, positions)
    assert objective.on(words, None, 2).weight() <= 2 * positions


def test_words_that_do_not_fit_are_refused_before_the_work() -> None:
    with pytest.raises(hp.errors.DataError, match=r"must be in \[0, 7\)"):
        choose_objective(Bigrams(), [(WORDS, WORDS + 3)], "next_word")
    with pytest.raises(hp.errors.DataError, match=r"next_word needs logits \(N, T, words\)"):
        choose_objective(nn.Linear(4, 2), [torch.randn(3, 4)], "next_word")


@pytest.mark.parametrize("loss", [None, F.cross_entropy, nn.CrossEntropyLoss()])
def test_as_many_words_in_a_text_as_in_the_vocabulary_mix_no_axes(loss: Any) -> None:
    model, square = Bigrams(), torch.randint(0, 7, (6, 7))
    with pytest.raises(hp.errors.DataError, match=r"along axis 1.*write loss_fn='next_word'"):
        hp.evaluate(model, [(square, square)], loss_fn=loss)
    with pytest.raises(hp.errors.DataError, match=r"along axis 1.*write loss_fn='next_word'"):
        hp.finetune(model, [(square, square)], [square], config=hp.FinetuneConfig(epochs=1), loss_fn=loss)
    if loss is not None:
        with pytest.raises(hp.errors.DataError, match=r"along axis 1.*write loss_fn='next_word'"):
            choose_objective(model, [(square, square)], loss)
    facts = choose_objective(model, [(square, square)], prefer="labels").facts()
    assert facts["loss"] == "dense outputs"
    part = choose_objective(model, [(square, square)])
    assert part.parts[0].axis == 2  # type: ignore[attr-defined]


def test_segmentations_of_the_same_shapes_are_no_texts() -> None:
    signals, labels = torch.randn(6, 3, 7), torch.randint(0, 7, (6, 7))
    net = nn.Conv1d(3, 7, 1)
    assert hp.evaluate(net, [(signals, labels)], loss_fn=F.cross_entropy).accuracy is not None
    assert choose_objective(net, [(signals, labels)], F.cross_entropy).facts() == {"loss": "cross_entropy"}
