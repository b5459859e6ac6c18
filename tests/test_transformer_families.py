"""Attention of transformers and timm as it comes: heads are found, and the pruned model equals the masked one."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.modules import call_model
from hessprune.structure.outputs import difference
from tests.huggingface import package
from tests.networks.check import masked

TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGES = {**SMALL, "image_size": 32, "patch_size": 8}
GPT = {
    "vocab_size": 50,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEXTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama": ("AutoModelForCausalLM", {**SMALL, **TOKENS, "num_key_value_heads": 2}, 2),
    "GPT2": ("AutoModelForCausalLM", GPT, 2),
    "Phi3": ("AutoModelForCausalLM", {**SMALL, **TOKENS, "num_key_value_heads": 2}, 2),
    "Gemma": ("AutoModelForCausalLM", {**SMALL, **TOKENS, "num_key_value_heads": 1, "head_dim": 12}, 2),
    "DebertaV2": ("AutoModel", {**SMALL, **TOKENS, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 2),
}
VISION: dict[str, tuple[dict[str, Any], int]] = {
    "Beit": ({**IMAGES, "use_relative_position_bias": True}, 2),
}
BLOCKS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "Beit": ("beit", {**BLOCKS, "use_rel_pos_bias": True, "init_values": 0.1}, 2),
    "Eva": ("eva", {**BLOCKS, "use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}, 2),
    "Cait": ("cait", {**BLOCKS, "init_values": 0.1, "depth_token_only": 1}, 3),
    "Xcit": ("xcit", {**BLOCKS, "eta": 1.0, "cls_attn_layers": 1}, 3),
}


def lively(model: nn.Module) -> nn.Module:
    """Make every parameter matter, in float64."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def text_model(name: str) -> nn.Module:
    transformers = package("transformers")
    auto, options, _ = TEXTS[name]
    torch.manual_seed(0)
    return lively(getattr(transformers, auto).from_config(getattr(transformers, f"{name}Config")(**options)))


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(length))


def halved(model: nn.Module, inputs: Any, others: Any, heads: int) -> tuple[hp.Plan, nn.Module, nn.Module]:
    """Remove half of the units of every group; check the number of groups with heads, and slicing against masking."""
    groups = hp.find_groups(model, inputs, compare=True)
    is_head = {group.name: len(group.slices[0].index[0]) >= 12 or group.num_units <= 4 for group in groups}
    assert sum(is_head.values()) >= heads
    saliency = {}
    for number, group in enumerate(groups):
        order = torch.randperm(group.num_units, generator=torch.Generator().manual_seed(number))
        saliency[group.name] = order + 1000.0 * (order >= group.num_units // 2)
    plan = hp.make_plan(model, groups, saliency, hp.Budget(units=0.5), example_inputs=inputs)
    assert all(plan.removed[name] for name, is_one in is_head.items() if is_one)
    pruned, expected = hp.apply_plan(model, plan, example_inputs=inputs), masked(model, groups, plan.removed)
    for each in (inputs, others):
        with torch.no_grad():
            assert difference(call_model(expected, each), call_model(pruned, each)) < 1e-10
    return plan, pruned, expected


@pytest.mark.parametrize("name", TEXTS)
def test_language_models_are_pruned_as_they_come(name: str) -> None:
    model = text_model(name)
    _, pruned, expected = halved(model, {"input_ids": ids(2, 9)}, {"input_ids": ids(3, 7)}, TEXTS[name][2])
    if hasattr(model, "generate") and model.config.use_cache:
        both: list[Any] = [expected, pruned]
        written = [each.generate(ids(2, 5), max_new_tokens=5, do_sample=False) for each in both]
        assert torch.equal(*written)
        assert both[1].config.use_cache
        assert both[1](ids(1, 4)).past_key_values is not None


@pytest.mark.parametrize("name", VISION)
def test_vision_models_of_transformers(name: str) -> None:
    transformers = package("transformers")
    options, heads = VISION[name]
    torch.manual_seed(0)
    model = lively(transformers.AutoModel.from_config(getattr(transformers, f"{name}Config")(**options)))
    images = [{"pixel_values": torch.randn(batch, 3, 32, 32).double()} for batch in (2, 3)]
    plan, pruned, _ = halved(model, *images, heads)
    assert hp.cost(pruned, images[0]) == plan.cost_after


@pytest.mark.parametrize("name", TIMM)
def test_vision_models_of_timm(name: str) -> None:
    package("timm")
    module, options, heads = TIMM[name]
    factory: Callable[..., nn.Module] = getattr(importlib.import_module(f"timm.models.{module}"), name)
    torch.manual_seed(0)
    images = [torch.randn(batch, 3, 32, 32).double() for batch in (2, 3)]
    plan, pruned, _ = halved(lively(factory(**options)), *images, heads)
    assert hp.cost(pruned, images[0]) == plan.cost_after


TINY = {**TOKENS, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "DebertaV2": {**TINY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 32},
    "Bart": {
        **TOKENS, "d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_that_read_a_table_of_positions_or_the_ends_of_texts(name: str) -> None:
    transformers = package("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**CLASSIFIERS[name])
    model = lively(getattr(transformers, f"{name}ForSequenceClassification")(config)).float()
    texts = torch.cat([ids(16, 5), torch.full((16, 1), TOKENS["eos_token_id"])], 1)
    example, budget = {"input_ids": texts[:1]}, hp.Budget(params=0.95)
    result = hp.prune(model, example, [{"input_ids": texts}], budget=budget, compensate=False)
    assert result.plan.num_removed > 0
    unseen = result.saliency.provenance.get("unseen", [])
    assert [key.rpartition(".")[2] for key in unseen] == (["pos_key_proj"] if name == "DebertaV2" else [])


VIEWED: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba": ("MambaForCausalLM", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
    "Falcon": ("FalconForCausalLM", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1}),
}
"""Models that multiply by views of their weights."""


@pytest.mark.parametrize("name", VIEWED)
def test_weights_behind_views_are_scored(name: str) -> None:
    transformers = package("transformers")
    kind, options = VIEWED[name]
    options |= {"num_attention_heads": 4} if name == "Falcon" else {}
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options)).eval()
    ids = torch.randint(3, 50, (4, 8))
    groups = hp.find_groups(model, {"input_ids": ids[:1]})
    batches = [({"input_ids": ids}, torch.randint(50, (4, 8)))]
    for method in ("joint", "hap", "sosp-i"):
        saliency = hp.saliency(model, groups, batches, method=method)
        assert not saliency.provenance.get("unseen")
        assert saliency.keys() == {group.name for group in groups}
