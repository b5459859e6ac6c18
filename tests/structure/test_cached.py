"""Units whose number a decoder's configuration fixes in the state that it keeps stay, by name."""

import pytest
import torch

import hessprune as hp
from hessprune.errors import UnsupportedModelError
from tests.huggingface import package


def test_a_state_made_from_the_configuration_keeps_the_width_of_its_layers() -> None:
    transformers = package("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**sizes, vocab_size=20, context_length=16)).eval()
    ids = torch.randint(3, 20, (2, 8))
    prompt = {"input_ids": ids[:1]}
    groups = hp.find_groups(model, prompt)
    assert [group.name for group in groups] == [f"rwkv.blocks.{number}.feed_forward.key" for number in (0, 1)]
    reasons = {item.param: item.reason for item in groups.frozen if item.dim == 0}
    assert "has the size of its configuration" in reasons["rwkv.blocks.1.attention.key.weight"]
    options = {"method": "magnitude", "compensate": False}
    smaller = hp.prune(model, prompt, [{"input_ids": ids}], budget=hp.Budget(macs=0.8), **options).model
    with torch.no_grad():
        whole, cached = (smaller(ids, use_cache=cache).logits for cache in (False, True))
    assert torch.allclose(whole, cached, atol=1e-6)


def test_groups_of_a_decoder_that_keeps_no_state_of_fixed_size_stay_as_they_are() -> None:
    transformers = package("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=20)).eval()
    groups = hp.find_groups(model, {"input_ids": torch.randint(3, 20, (1, 8))})
    assert sorted(group.kind for group in groups) == ["heads", "neurons"]


def mamba(state_size: int) -> torch.nn.Module:
    """Return a Mamba-2 of 8 heads in 2 groups."""
    transformers = package("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 6}
    settings = transformers.Mamba2Config(**sizes, state_size=state_size, n_groups=2, chunk_size=4)
    return transformers.Mamba2ForCausalLM(settings).eval()


def test_heads_of_a_state_go_where_attributes_count_them() -> None:
    model, ids = mamba(16), torch.randint(4, 40, (2, 12))
    options = {"method": "magnitude", "compensate": False}
    smaller = hp.prune(model, {"input_ids": ids[:1]}, [{"input_ids": ids}], budget=hp.Budget(macs=0.85), **options)
    assert sum(map(len, smaller.plan.removed.values())) > 0
    assert smaller.model.generate(input_ids=ids, max_new_tokens=5, do_sample=False).shape == (2, 17)


def test_a_step_from_the_cache_with_sizes_of_its_own_keeps_groups_whole() -> None:
    """With as many heads as numbers in a state, no attribute tells which of both a view of the step counts."""
    with pytest.raises(UnsupportedModelError, match="the state that the model keeps has the size of its configuration"):
        hp.find_groups(mamba(8), {"input_ids": torch.randint(4, 40, (1, 12))})
