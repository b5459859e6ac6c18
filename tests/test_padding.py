"""Padding of texts is no data: neither the statistics of a layer's inputs nor a refit see it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp

WORDS, LENGTH, PADS = 20, 6, 5


class Block(nn.Module):
    """A feed-forward block of a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Text(nn.Module):
    """Words one by one; `flat` has one row for each, and `turned` has the words in front."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.embedding, self.blocks = nn.Embedding(WORDS, 8), nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        x = x.flatten(0, 1) if self.form == "flat" else x.transpose(0, 1) if self.form == "turned" else x
        for block in self.blocks:
            x = block(x)
        x = (
            x.unflatten(0, input_ids.shape)
            if self.form == "flat"
            else x.transpose(0, 1)
            if self.form == "turned"
            else x
        )
        return self.head(x)


def texts(side: str | None) -> list[dict[str, Tensor]]:
    """Return texts, padded on one side by a word that stands nowhere else, or not."""
    ids = torch.randint(1, WORDS, (48, LENGTH), generator=torch.Generator().manual_seed(0))
    mask, pads = torch.ones_like(ids), torch.zeros(len(ids), PADS, dtype=torch.int64)
    if side is not None:
        ids, mask = (torch.cat(pair[:: 1 if side == "right" else -1], 1) for pair in ((ids, pads), (mask, pads)))
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(12), mask.split(12), strict=True)]


def pruned(model: nn.Module, data: Any, **settings: Any) -> dict[str, Tensor]:
    budget = hp.Budget(macs=0.6)
    found = hp.prune(model, data[0], data, budget=budget, method="magnitude", **settings)
    return found.model.state_dict()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["plain", "flat", "turned"])
def test_moments_of_padded_texts_are_those_of_the_words(form: str, side: str):
    torch.manual_seed(0)
    model = Text(form).eval()
    own, other = (hp.measure(model, data[0], data, method="joint").moments for data in (texts(None), texts(side)))
    assert own is not None
    assert other is not None
    assert own.keys() == other.keys() != set()
    for name, held in own.items():
        assert held.rows == other[name].rows == 48 * LENGTH
        torch.testing.assert_close(held.covariance, other[name].covariance)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["plain", "flat", "turned"])
def test_a_refit_on_padded_texts_is_that_on_the_words(form: str, side: str, sequential: bool):
    if sequential and form != "plain":
        pytest.skip("blocks take samples along the first axis")
    torch.manual_seed(0)
    model = Text(form).eval()
    own, other = (pruned(model, data, sequential=sequential) for data in (texts(None), texts(side)))
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)
    cut = pruned(model, texts(None), compensate=False)
    assert not torch.equal(own["blocks.2.down.weight"], cut["blocks.2.down.weight"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("form", ["plain", "flat", "turned"])
def test_rows_of_wide_layers_are_drawn_among_the_words(form: str, side: str, monkeypatch: pytest.MonkeyPatch):
    """Four rows of each text, instead of four that may be padding."""
    monkeypatch.setattr("hessprune.curvature.reading_layers.ROWS_PER_SAMPLE", 4)
    torch.manual_seed(0)
    model, moments = Text(form).double().eval(), {}
    for padded in (None, side):
        data = texts(padded)
        moments[padded] = hp.measure(model, data[0], data).moments
    for name, held in moments[None].items():
        assert held.rows == moments[side][name].rows == 4 * 48
        torch.testing.assert_close(moments[side][name].covariance, held.covariance)
