"""The loss by its name, wherever `loss_fn` is accepted; other names are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.named_losses import loss_of
from hessprune.foundation.words import next_word

WORDS = torch.randint(0, 9, (24, 6), generator=torch.Generator().manual_seed(0))
BATCHES, EXAMPLE = [WORDS[:16], WORDS[16:]], WORDS[:1]
BUDGET = hp.Budget(params=0.8)


class OneHot(nn.Module):
    """Words as unit vectors."""

    def forward(self, words: Tensor) -> Tensor:
        return F.one_hot(words, 9).float()


def net() -> nn.Module:
    """Return a language model of bigrams."""
    torch.manual_seed(0)
    return nn.Sequential(OneHot(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 9)).eval()


def compensated(loss: Any) -> Any:
    """Compensate a model from which units by magnitude are gone."""
    model = net()
    smaller = hp.prune(model, EXAMPLE, BATCHES, budget=BUDGET, method="magnitude", compensate=False)
    return hp.compensate(model, smaller.model, smaller.plan, BATCHES, loss_fn=loss)


CALLS: dict[str, Callable[[Any], Any]] = {
    "prune": lambda loss: hp.prune(net(), EXAMPLE, BATCHES, budget=BUDGET, loss_fn=loss),
    "measure": lambda loss: hp.measure(net(), EXAMPLE, BATCHES, method="taylor", loss_fn=loss),
    "saliency": lambda loss: hp.saliency(net(), hp.find_groups(net(), EXAMPLE), BATCHES, loss_fn=loss),
    "trace": lambda loss: hp.hessian_trace(net(), hp.find_groups(net(), EXAMPLE), BATCHES, loss_fn=loss),
    "compensate": compensated,
    "bottlenecks": lambda loss: hp.find_bottlenecks(net(), EXAMPLE, BATCHES, method="hap", loss_fn=loss, draws=1),
    "reallocate": lambda loss: hp.reallocate(
        net(), EXAMPLE, BATCHES, budget=hp.Budget(params=1.0), method="hap", loss_fn=loss
    ),
    "evaluate": lambda loss: hp.evaluate(net(), BATCHES, loss_fn=loss),
    "finetune": lambda loss: hp.finetune(
        net(), BATCHES, BATCHES, config=hp.FinetuneConfig(epochs=1, lr=0.1), loss_fn=loss
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_name_is_known_everywhere_and_no_other_or_class(call: str) -> None:
    assert CALLS[call]("next_word") is not None
    for wrong in ("perplexity", 3):
        with pytest.raises(hp.errors.ArgumentError, match=r"`loss_fn` must be a function .* only 'next_word'"):
            CALLS[call](wrong)
    with pytest.raises(hp.errors.ArgumentError, match=r"got the class CrossEntropyLoss\. Write nn\.CrossEntropyLoss"):
        CALLS[call](nn.CrossEntropyLoss)


def test_functions_stay_what_they_are() -> None:
    assert loss_of("next_word") is next_word
    assert loss_of(next_word) is next_word
    assert loss_of(None) is None
