"""Decoders of transformers as they come: heads, neurons, experts and channels of states go, and `generate` agrees."""

import copy
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.modules import call_model, logits_of
from hessprune.structure.outputs import difference
from tests.huggingface import package
from tests.networks.check import masked

ROOT = Path(__file__).parents[1]
TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {**SMALL, **TOKENS, "max_position_embeddings": 64}
GROUPED = {**DECODER, "num_key_value_heads": 2, "head_dim": 12}
FAMILIES: dict[str, tuple[dict[str, Any], int, int]] = {  # options, groups of heads, other groups
    "GPT2": ({**TOKENS, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}, 2, 2),
    "OPT": ({**DECODER, "ffn_dim": 64, "word_embed_proj_dim": 48}, 2, 2),
    "Llama": (GROUPED, 2, 2),
    "Mistral": ({**GROUPED, "sliding_window": 4}, 2, 2),
    "Qwen2": ({**DECODER, "num_key_value_heads": 2}, 2, 2),
    "Qwen3": (GROUPED, 2, 2),
    "Gemma": (GROUPED, 2, 2),
    "Gemma2": ({**GROUPED, "sliding_window": 4}, 2, 2),
    "Phi": (DECODER, 2, 2),
    "T5": (
        {**TOKENS, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        3,
        4,
    ),
    "Whisper": (
        {
            **TOKENS,
            "num_mel_bins": 8,
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 10,
            "max_target_positions": 64,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        6,
        5,
    ),
    "Mamba": ({**TOKENS, "hidden_size": 48, "state_size": 8, "num_hidden_layers": 2}, 0, 2),
    "Mixtral": ({**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, 2, 2),
}
CLASSES = {"T5": "T5ForConditionalGeneration", "Whisper": "WhisperForConditionalGeneration", "GPT2": "GPT2LMHeadModel"}
EMBEDDING = ("embed", "wte", "wpe", "lm_head", "shared")


def language_model(name: str, **changed: Any) -> Any:
    """Return a small model of a family, in which every parameter matters."""
    transformers = package("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**FAMILIES[name][0] | changed)
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if name == "Mixtral":
        model.set_experts_implementation("eager")  # the grouped kernel takes no 64-bit numbers
    return model.double().eval()


SHARING = [name for name, (options, *_) in FAMILIES.items() if "num_key_value_heads" in options]


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(length))


def inputs_of(name: str, batch: int = 2, length: int = 9) -> dict[str, Tensor]:
    if name == "Whisper":
        sound = torch.randn(batch, 8, 20, generator=torch.Generator().manual_seed(length)).double()
        return {"input_features": sound, "decoder_input_ids": ids(batch, length)}
    given = {"input_ids": ids(batch, length)}
    return given | ({"decoder_input_ids": ids(batch, length - 2)} if name == "T5" else {})


def written(name: str, model: Any, **options: Any) -> Tensor:
    """Return what a model writes, greedily."""
    given = {key: value for key, value in inputs_of(name).items() if key != "decoder_input_ids"}
    if name != "Whisper":
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    model.generation_config.max_length = None
    return model.generate(**given, max_new_tokens=20, do_sample=False, eos_token_id=49, **options)


def block_params(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters of the blocks, and of all else."""
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    outside = sum(size for name, size in sizes.items() if any(part in name for part in EMBEDDING))
    return sum(sizes.values()) - outside, outside


def block_budget(model: nn.Module, kept: float) -> hp.Budget:
    """Return the budget that keeps a share of the parameters of the blocks, and all others."""
    blocks, rest = block_params(model)
    return hp.Budget(params=int(kept * blocks) + rest)


@cache
def halved(name: str) -> tuple[Any, hp.PruneResult]:
    """Return a small model of a family, and what is left of it without half of the blocks' parameters."""
    model, inputs = language_model(name), inputs_of(name)
    budget = block_budget(model, 0.5)
    return model, hp.prune(model, inputs, [inputs], budget=budget, method="random", compensate=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_decoder_writes_what_the_masked_one_writes(name: str) -> None:
    model, result = halved(name)
    groups, inputs, other = result.plan.groups, inputs_of(name), inputs_of(name, batch=3, length=7)
    heads = [group for group in groups if group.num_units <= 4]
    assert (len(heads), len(groups) - len(heads)) == FAMILIES[name][1:]
    budget = block_budget(model, 0.75)
    quarter = hp.make_plan(model, groups, result.saliency, budget, example_inputs=inputs)
    for kept, plan, smaller in (
        (0.5, result.plan, result.model),
        (0.75, quarter, hp.apply_plan(model, quarter, example_inputs=inputs)),
    ):
        assert block_params(smaller)[0] <= kept * block_params(model)[0]
        assert hp.cost(smaller, inputs) == plan.cost_after
        expected = masked(model, groups, plan.removed)
        with torch.no_grad():
            assert difference(call_model(expected, other), call_model(smaller, other)) < 1e-10
        text = written(name, smaller)
        assert torch.equal(text, written(name, smaller, use_cache=False))
        assert torch.equal(text, written(name, expected))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in {"GPT2", "Mixtral"} else pytest.mark.slow) for name in FAMILIES]
)
def test_the_logits_of_prompts_run_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = copy.deepcopy(halved(name)[1].model).float()
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs_of(name).items()}
    file = hp.export_onnx(model, inputs, tmp_path / "model.onnx", dynamic_length=name not in {"Whisper", "Mamba"})
    assert file.stat().st_size > 4 * sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in {"Gemma2", "Mamba"}])
def test_fused_and_written_out_attention_cost_the_same(name: str) -> None:
    model, inputs = halved(name)[0], inputs_of(name)
    fused = hp.cost(model, inputs)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert (model.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
    assert hp.cost(eager, inputs) == fused
    assert fused.kv_cache > 0


@pytest.mark.parametrize("gqa", ["even-queries", "free-queries"])
@pytest.mark.parametrize("name", SHARING)
def test_queries_leave_and_keys_stay(name: str, gqa: str, tmp_path: Path) -> None:
    model, inputs, other = language_model(name, num_attention_heads=6), inputs_of(name), inputs_of(name, 3, 7)
    groups = hp.find_groups(model, inputs, gqa=gqa, compare=True)
    heads = [group for group in groups if "self_attn" in group.name]
    assert [group.num_units for group in heads] == [3 if gqa == "even-queries" else 6] * 2
    gone = {heads[0].name: (1,), heads[1].name: (0, 2)}
    if gqa == "free-queries":
        gone = {heads[0].name: (0, 1, 2, 4), heads[1].name: (1, 3, 4)}  # keys without queries, and 2 and 1
    values = {g.name: torch.tensor([float(u not in gone.get(g.name, ())) for u in range(g.num_units)]) for g in groups}
    ranking = hp.Ranking(per_cost=False, min_kept_fraction=0.0, ignore=("*mlp*",))
    budget = hp.Budget(units=sum(g.num_units for g in groups) - sum(map(len, gone.values())))
    plan = hp.make_plan(model, groups, values, budget, example_inputs=inputs, ranking=ranking)
    assert {key: units for key, units in plan.removed.items() if units} == gone
    smaller: Any = hp.apply_plan(model, plan, example_inputs=inputs)
    expected = masked(model, groups, plan.removed)
    attentions = [each.model.layers[0].self_attn for each in (smaller, model)]
    assert attentions[0].k_proj.weight.shape == attentions[1].k_proj.weight.shape
    assert hp.cost(smaller, inputs).kv_cache == hp.cost(model, inputs).kv_cache
    with torch.no_grad():
        assert difference(call_model(expected, other), call_model(smaller, other)) < 1e-10
        again = hp.load(hp.save(smaller, plan, tmp_path))
        assert torch.equal(logits_of(call_model(again, other)), logits_of(call_model(smaller, other)))
    text = written(name, smaller)
    assert torch.equal(text, written(name, smaller, use_cache=False))
    assert torch.equal(text, written(name, expected))


LOADING = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from tests.huggingface import package
package("transformers")
import hessprune as hp
from hessprune.foundation.modules import call_model, logits_of
for folder in Path(sys.argv[1]).iterdir():
    inputs = load_file(folder / "inputs.safetensors")
    expected = inputs.pop("logits")
    with torch.no_grad():
        found = logits_of(call_model(hp.load(folder), inputs))
    print(folder.name, torch.equal(found, expected))
"""


def test_saved_decoders_are_read_bit_for_bit_by_a_new_process(tmp_path: Path) -> None:
    for name in FAMILIES:
        _, result = halved(name)
        folder = hp.save(result.model, result.plan, tmp_path / name)
        inputs = inputs_of(name)
        with torch.no_grad():
            logits = logits_of(call_model(result.model, inputs))
        save_file({**inputs, "logits": logits}, folder / "inputs.safetensors")
    found = in_new_process(LOADING, str(tmp_path))
    assert found == dict.fromkeys(FAMILIES, "True")


MEASURING = """
import resource, torch
import hessprune as hp
from tests.huggingface import package
from tests.test_language_models import GROUPED
transformers = package("transformers")
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED | {"vocab_size": 49152})).eval()
batches = [{"input_ids": torch.randint(3, 49152, (2, 48))}]
model(**batches[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(parameter.numel() for parameter in model.parameters())
result = hp.prune(model, batches[0], batches, budget=hp.Budget(params=size - 8000))
assert result.plan.provenance["outputs"] == {"logits": "divergence at 21 positions"}
print("megabytes", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_vocabulary_of_49152_takes_little_memory() -> None:
    """The Hessian of one position alone would take 19 GB."""
    package("transformers")
    assert int(in_new_process(MEASURING)["megabytes"]) < 700


def in_new_process(program: str, *arguments: str) -> Mapping[str, str]:
    """Run a program that prints pairs of words, on as many threads as these tests; return the pairs."""
    command, env = [sys.executable, "-W", "ignore", "-c", program, *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert not done.returncode, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())
