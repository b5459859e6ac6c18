"""Grouped queries as units: at one place of every head of keys and values, or each by itself."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import hessprune as hp
from hessprune.errors import ArgumentError
from tests.huggingface import package
from tests.networks.check import masked
from tests.test_attention_layouts import LAYOUTS, Layout, X


def units(layout: Layout, gqa: str) -> tuple[torch.nn.Module, hp.Groups]:
    torch.manual_seed(0)
    model = layout.make().double().eval()
    return model, hp.find_groups(model, layout.inputs, gqa=gqa, compare=True)


def test_any_query_of_attention_in_one_kernel_leaves(tmp_path: Path) -> None:
    model, groups = units(LAYOUTS["grouped in the kernel"], "free-queries")
    queries = next(each for each in groups if each.num_units == 8 and each.literals)
    assert {piece.param.rpartition(".")[0] for piece in queries.slices} == {"attention.q", "attention.proj"}
    named = [literal.attribute for literal in queries.literals]
    assert named == [*(f"queries[{key} of 4]=2" for key in range(4)), "n_heads"]
    plan = hp.make_plan(
        model,
        [queries],
        {queries.name: torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0])},
        hp.Budget(units=5 / 8),
        example_inputs=LAYOUTS["grouped in the kernel"].inputs,
        ranking=hp.Ranking(per_cost=False),
    )
    smaller = hp.apply_plan(model, plan)
    assert torch.allclose(smaller(X), masked(model, [queries], plan.removed)(X))
    assert any("keys and values stay for gqa='free-queries'" in item.reason for item in groups.frozen)
    runtime, small = pytest.importorskip("onnxruntime"), smaller.float()
    session = runtime.InferenceSession(str(hp.export_onnx(small, X.float(), tmp_path / "model.onnx")))
    (written,) = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    assert torch.allclose(torch.from_numpy(written), small(X.float()), atol=1e-5)


def test_attention_with_as_many_keys_as_queries_is_found_as_ever() -> None:
    for gqa in ("even-queries", "free-queries"):
        _, groups = units(LAYOUTS["DINO"], gqa)
        assert 4 in [group.num_units for group in groups]


@pytest.mark.parametrize(
    "ask", [lambda: hp.Ranking(gqa="all"), lambda: hp.find_groups(torch.nn.Linear(2, 2), X, gqa="all")]
)
def test_other_modes_are_refused(ask) -> None:
    with pytest.raises(ArgumentError, match="`gqa` must be"):
        ask()


@pytest.mark.parametrize(("keys", "gqa"), [(1, "kv-group"), (4, "even-queries")])
def test_paths_that_the_example_does_not_take_repeat_keys_for_the_queries_that_stay(keys: int, gqa: str) -> None:
    transformers = package("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 8}
    options = {**sizes, "num_key_value_heads": keys, "vocab_size": 20, "pad_token_id": 0, "eos_token_id": None}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()
    ids, mask = torch.randint(3, 20, (2, 8)), torch.ones(2, 8, dtype=torch.int64)
    mask[0, :3] = 0
    heads = next(group for group in hp.find_groups(model, {"input_ids": ids[:1]}, gqa=gqa) if group.kind == "heads")
    plan = hp.make_plan(
        model,
        [heads],
        {heads.name: torch.arange(float(heads.num_units))},
        hp.Budget(units=heads.num_units - 1),
        example_inputs={"input_ids": ids[:1]},
        ranking=hp.Ranking(per_cost=False),
    )
    smaller, expected = hp.apply_plan(model, plan), masked(model, [heads], plan.removed)
    static = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "static", "disable_compile": True}
    assert torch.equal(*(each.generate(ids, attention_mask=mask, **static) for each in (smaller, expected)))
    for implementation in ("sdpa", "eager"):
        smaller.set_attn_implementation(implementation)
        found, wanted = (each(ids, attention_mask=mask).logits[mask.bool()] for each in (smaller, expected))
        assert torch.allclose(found, wanted, atol=1e-6)


class Repeating(torch.nn.Module):
    """Multi-query attention that repeats its key only where there is a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.n_rep, self.q, self.kv, self.proj = (
            4,
            *(torch.nn.Linear(8, size) for size in (8, 4)),
            torch.nn.Linear(8, 8),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (-1, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (-1, 2)).transpose(1, 2).split(1, 1)
        if mask is not None:
            k, v = (each.repeat_interleave(self.n_rep, 1) for each in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=mask is None)
        return x + self.proj(attended.transpose(1, 2).flatten(2))


def test_a_count_of_repetitions_that_the_example_does_not_read_follows_the_queries() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 8), Repeating(), torch.nn.Linear(8, 2)), torch.randn(2, 5, 3)
    heads = next(group for group in hp.find_groups(model, x) if group.kind == "heads")
    assert [literal.attribute for literal in heads.literals] == ["n_rep"]


def fused(heads: int, keys: int) -> torch.nn.Module:
    transformers = package("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 20, "pad_token_id": 0}
    options = {"num_attention_heads": heads, "num_key_value_heads": keys, "eos_token_id": None}
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes, **options)).eval()


@pytest.mark.parametrize("gqa", ["even-queries", "free-queries"])
def test_queries_do_not_leave_alone_where_one_layer_makes_all(gqa: str, caplog: pytest.LogCaptureFixture) -> None:
    ids = {"input_ids": torch.randint(3, 20, (1, 6))}
    with pytest.raises(ArgumentError, match=rf"`gqa` must be 'kv-group'.*got '{gqa}'.*'model.layers.0.self_attn.qkv_p"):
        hp.find_groups(fused(8, 2), ids, gqa=gqa)
    assert 8 in [group.num_units for group in hp.find_groups(fused(8, 8), ids, gqa=gqa)]

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = LAYOUTS["grouped in the kernel"].make().float(), fused(8, 2)

        def forward(self, x: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.first(x), self.second(input_ids).logits

    groups = hp.find_groups(Both(), {"x": X.float(), **ids}, gqa=gqa)
    assert any("keys and values stay" in item.reason for item in groups.frozen)
    assert "leave with their queries: 'second.model.layers.0.self_attn.qkv_proj'" in caplog.text
