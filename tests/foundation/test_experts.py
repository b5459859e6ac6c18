"""Experts run without kernels that group products, where these would refuse numbers or widths."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.foundation.experts import experts_run_by, let_experts_fit, put_experts_side_by_side
from hessprune.foundation.modules import call_model, logits_of
from tests.huggingface import package


class Experts(nn.Module):
    """Experts as transformers marks them."""

    def __init__(self, width: int, config: Any) -> None:
        super().__init__()
        self.up, self._is_expert_parallel, self.config = nn.Parameter(torch.zeros(2, width, 8)), False, config


def running(model: Any) -> str:
    return str(model.config._experts_implementation)


def experts(width: int = 8, implementation: str = "grouped_mm") -> Any:
    model = nn.Sequential(Experts(width, SimpleNamespace(_experts_implementation=implementation)))
    model.config = model[0].config
    return model


def test_experts_run_by_a_loop_and_then_as_before() -> None:
    model = experts()
    with experts_run_by(model):
        assert running(model) == "eager"
    assert running(model) == "grouped_mm"
    with experts_run_by(model.to("meta")):
        assert running(model) == "batched_mm"
    with experts_run_by(model, "grouped_mm"):
        assert running(model) == "grouped_mm"


def test_experts_side_by_side_stay_so() -> None:
    model = experts()
    put_experts_side_by_side(model)
    with experts_run_by(model):
        assert running(model) == "batched_mm"


def test_only_widths_that_the_kernel_refuses_change_the_way() -> None:
    for width, way in ((8, "grouped_mm"), (7, "eager")):
        model = experts(width)
        let_experts_fit(model)
        assert running(model) == way
    model = experts(7, "batched_mm")
    let_experts_fit(model)
    assert running(model) == "batched_mm"


def mixture() -> Any:
    transformers = package("transformers")
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return transformers.MixtralForCausalLM(config).eval()


def test_a_pruned_mixture_of_an_odd_width_runs_as_it_comes() -> None:
    model = mixture()
    ids = {"input_ids": torch.arange(12).view(2, 6)}
    groups = hp.find_groups(model, ids, ignore=["*self_attn*"])
    assert running(model) == "grouped_mm"
    saliency = {group.name: torch.arange(16.0) for group in groups}
    plan = hp.make_plan(model, groups, saliency, hp.Budget(units=13), example_inputs=ids)
    smaller: Any = hp.apply_plan(model, plan, example_inputs=ids)
    assert smaller.model.layers[0].mlp.experts.down_proj.shape == (4, 16, 13)
    with torch.no_grad():
        assert torch.allclose(smaller(**ids).logits, logits_of(call_model(smaller, ids)), atol=1e-6)
    assert hp.cost(model, ids).macs > 12 * 2 * 3 * 16 * 16  # two experts for each token


@pytest.mark.parametrize(("units", "way"), [(19, "eager"), (20, "grouped_mm")])
def test_a_widened_mixture_of_any_width_runs_as_it_comes(units: int, way: str, tmp_path: Path) -> None:
    model, ids = mixture(), {"input_ids": torch.arange(12).view(2, 6)}
    wider: Any = hp.widen(model, ids, {"model.layers.0.mlp.experts": units})
    assert (running(wider.model), running(model)) == (way, "grouped_mm")
    with torch.no_grad():
        assert torch.allclose(wider.model(**ids).logits, model(**ids).logits, atol=1e-5)
        again: Any = hp.load(wider.save(tmp_path))
        assert torch.equal(again(**ids).logits, wider.model(**ids).logits)
