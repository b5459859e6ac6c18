"""Experts in stacked weights are scored by every method: units are neurons of all experts of a layer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hessprune as hp
from hessprune.methods.experts import experts_apart
from tests.huggingface import package

METHODS = ["joint", "hap", "sosp-i", "sosp-h", "taylor", "nvit"]


def mixture() -> tuple[Any, dict[str, Tensor]]:
    transformers = package("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(
        **sizes, vocab_size=30, num_key_value_heads=2, head_dim=4, num_local_experts=4, num_experts_per_tok=2
    )
    ids = torch.randint(0, 30, (6, 7), generator=torch.Generator().manual_seed(1))
    return transformers.MixtralForCausalLM(config).eval(), {"input_ids": ids}


def loss(output: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def expert_groups(model: Any, example: dict[str, Tensor]) -> list[hp.Group]:
    return [group for group in hp.find_groups(model, example) if group.name.endswith("experts")]


def test_the_model_answers_as_before_and_comes_back_as_it_was() -> None:
    model, example = mixture()
    groups, before = expert_groups(model, example), dict(model.named_modules())
    with torch.no_grad():
        answer = model(**example).logits
        with experts_apart(model, groups, [(example, None)]) as apart:
            torch.testing.assert_close(model(**example).logits, answer, rtol=1e-4, atol=1e-5)
            assert {piece.param.split(".experts.")[1].split(".")[0] for piece in apart[0].slices} == {"up", "down"}
    assert dict(model.named_modules()) == before


def test_scores_are_squares_of_the_change_to_first_order() -> None:
    model, example = mixture()
    groups, labels = expert_groups(model, example), example["input_ids"]
    found = hp.saliency(model, groups, [(example, labels)], method="nvit", loss_fn=loss)
    model.zero_grad()
    loss(model(**example), labels).backward()
    weights = dict(model.named_parameters())
    for group in groups:
        total = torch.zeros(group.num_units)
        for piece in group.slices:
            product = (weights[piece.param] * weights[piece.param].grad).movedim(piece.dim, 0).flatten(1).sum(1)
            total += product[piece.positions()].sum(1)
        torch.testing.assert_close(found[group.name].float(), total.square(), rtol=1e-3, atol=1e-12)


def test_experts_that_two_blocks_share_are_scored_through_both() -> None:
    model, example = mixture()
    layers, labels = model.model.layers, example["input_ids"]
    layers[1].mlp.experts = layers[0].mlp.experts
    (group,) = expert_groups(model, example)
    found = hp.saliency(model, [group], [(example, labels)], method="nvit", loss_fn=loss)[group.name]
    model.zero_grad()
    loss(model(**example), labels).backward()
    weights, total = dict(model.named_parameters()), torch.zeros(group.num_units)
    for piece in group.slices:
        product = (weights[piece.param] * weights[piece.param].grad).movedim(piece.dim, 0).flatten(1).sum(1)
        total += product[piece.positions()].sum(1)
    torch.testing.assert_close(found.float(), total.square(), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_the_experts(method: str) -> None:
    model, example = mixture()
    groups = hp.find_groups(model, example)
    labels = example["input_ids"]
    scores = hp.saliency(model, groups, [(example, labels)], method=method, loss_fn=loss)
    assert "unseen" not in scores.provenance
    for group in expert_groups(model, example):
        assert len(set(scores[group.name].tolist())) > 1


def test_experts_of_another_form_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate of this model is another function than `act_fn`, as in families that say so in their forward."""
    model, example = mixture()
    groups, before = expert_groups(model, example), dict(model.named_modules())
    for module in model.modules():
        if hasattr(module, "gate_up_proj"):
            monkeypatch.setattr(module, "forward", lambda hidden, *_: 2 * hidden)
    with experts_apart(model, groups, [(example, None)]) as apart:
        assert apart == groups
        assert dict(model.named_modules()) == before
