"""What is left of a uniformly pruned model is said by its configuration, and transformers alone reads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import hessprune as hp
from hessprune.surgery.config import fit_config
from hessprune.surgery.pretrained import DENSE, dense_config
from tests.huggingface import package
from tests.test_language_models import halved, in_new_process, inputs_of, language_model

NATIVE = {  # the share of parameters, the mode of grouped queries, and the layers that stay
    "Llama": ("even-queries", ()),
    "Mistral": ("kv-group", ()),
    "Qwen2": ("kv-group", ()),
    "Qwen3": ("kv-group", ()),
    "Gemma": ("kv-group", ()),
    "Phi": ("kv-group", ()),
    "Mixtral": ("kv-group", ()),
    "GPT2": ("kv-group", ("*attn",)),
    "OPT": ("kv-group", ("*self_attn",)),
}
READING = """
import sys
from pathlib import Path
from tests.huggingface import package
package("transformers")
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for path in sorted(Path(sys.argv[1]).glob("*/*.safetensors")):
    if path.name != "logits.safetensors":
        continue
    given = load_file(path)
    for folder in (path.parent, path.parent / "saved"):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            found = model(input_ids=given["input_ids"]).logits
        is_same = torch.equal(found, given["logits"]) and "hessprune" not in sys.modules
        print(f"{path.parent.name}/{folder.name}", is_same)
"""


def uniform(name: str) -> tuple[Any, Any]:
    """Return a model and what is left of it, in 32 bits, with widths that kernels for experts take."""
    gqa, ignore = NATIVE[name]
    model, inputs = language_model(name).float(), inputs_of(name)
    if name == "Mixtral":
        model.set_experts_implementation("grouped_mm")
    ranking = hp.Ranking(uniform=True, gqa=gqa, ignore=ignore, round_to=4 if name == "Mixtral" else 1)
    budget = hp.Budget(params=0.7 if not ignore else 0.8)
    return model, hp.prune(model, inputs, [inputs], budget=budget, method="random", compensate=False, ranking=ranking)


def test_transformers_alone_reads_what_is_left(tmp_path: Path) -> None:
    for name in NATIVE:
        model, result = uniform(name)
        assert result.model.config.to_dict() != model.config.to_dict()
        folder = tmp_path / name
        result.model.save_pretrained(folder)
        hp.save(result.model, result.plan, folder / "saved")
        inputs = inputs_of(name)
        with torch.no_grad():
            logits = result.model(**inputs).logits
        save_file({**inputs, "logits": logits}, folder / "logits.safetensors")
        again: Any = hp.load(folder / "saved")
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, logits)
        assert getattr(again.config, DENSE) == getattr(result.model.config, DENSE)
    found = in_new_process(READING, str(tmp_path))
    assert found == {f"{name}/{folder}": "True" for name in sorted(NATIVE) for folder in (name, "saved")}


def test_both_ways_to_save_share_a_folder(tmp_path: Path) -> None:
    _, result = uniform("Llama")
    hp.save(result.model, result.plan, tmp_path)
    result.model.save_pretrained(tmp_path)
    again: Any = hp.load(tmp_path)
    inputs = inputs_of("Llama")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, result.model(**inputs).logits)


def test_the_numbers_of_the_dense_model_come_back() -> None:
    model, result = uniform("Qwen2")
    config = result.model.config
    assert config.num_key_value_heads < model.config.num_key_value_heads
    assert config.num_attention_heads / config.num_key_value_heads == 2
    before = model.config.to_dict()
    assert dense_config(config).to_dict() == before


@pytest.mark.parametrize("name", ["Llama", "T5", "Mamba"])
def test_a_configuration_that_cannot_say_it_stays(name: str) -> None:
    found: Any = halved(name)
    model, result = found
    if name == "Llama":
        kept = {len(units) for units in result.plan.removed.values()}
        assert len(kept) > 2  # layers differ
    before = model.config.to_dict()
    left = {group.name: len(result.plan.kept[group.name]) for group in result.plan.groups}
    fit_config(result.model, result.plan.groups, left)
    assert result.model.config.to_dict() == before


@pytest.mark.parametrize("kind", ["neurons", "heads"])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "T5"])
def test_the_configuration_of_a_widened_model_says_its_widths(name: str, kind: str, tmp_path: Path) -> None:
    model = language_model(name).float()
    x = inputs_of(name)
    before = model.config.to_dict()
    wide = {group.name: 2 * group.num_units for group in hp.find_groups(model, x) if group.kind == kind}
    wider = hp.widen(model, x, wide)
    wider.model.save_pretrained(tmp_path / "native")
    wider.save(tmp_path / "own")
    natively = type(model).from_pretrained(tmp_path / "native").eval()
    for again in (natively, hp.load(tmp_path / "own")):
        torch.testing.assert_close(again(**x).logits, model(**x).logits, rtol=1e-4, atol=1e-5)
    assert model.config.to_dict() == before
    assert dense_config(wider.model.config).to_dict() | WRITTEN == before | WRITTEN


WRITTEN = {"dtype": None, "architectures": None}
"""What `save_pretrained` adds."""


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 100}
PLAIN = {**SIZES, "intermediate_size": 64, "pad_token_id": 0, "eos_token_id": None}
EXPERTS = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def uniform_of(
    name: str, options: dict[str, Any], ignore: tuple[str, ...], *, units: float = 0.875, step: float = 1.0
) -> tuple[Any, Any, Tensor]:
    """Return a model, what is left of it, and words."""
    transformers = package("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**PLAIN, **options})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    ids = torch.randint(3, 100, (2, 8))
    ranking = hp.Ranking(uniform=True, ignore=ignore, per_cost=False, step=step)
    budget = hp.Budget(units=units)
    inputs = {"input_ids": ids[:1]}
    options = {"method": "magnitude", "compensate": False, "ranking": ranking}
    return model, hp.prune(model, inputs, [{"input_ids": ids}], budget=budget, **options), ids


@pytest.mark.parametrize(
    ("name", "options", "ignore"),
    [
        ("Phi3", {"num_key_value_heads": 1}, ("*mlp",)),
        ("Phi3", {"num_key_value_heads": 4}, ("*mlp",)),
        ("Qwen3Moe", {"num_key_value_heads": 4, **EXPERTS}, ("*attn",)),
        ("Falcon", {"alibi": False}, ()),
    ],
)
def test_fused_projections_and_experts_are_said(
    name: str, options: dict[str, Any], ignore: tuple[str, ...], tmp_path: Path
) -> None:
    model, result, ids = uniform_of(name, options, ignore)
    assert result.model.config.to_dict() != model.config.to_dict()
    result.model.save_pretrained(tmp_path / "plain")
    with torch.no_grad():
        logits = result.model(ids).logits
        for again in (
            type(model).from_pretrained(tmp_path / "plain").eval(),
            hp.load(hp.save(result.model, result.plan, tmp_path / "ours")),
        ):
            assert torch.equal(again(ids).logits, logits)


def test_a_config_that_the_forward_reads_is_written_after_the_last_step() -> None:
    _, result, _ = uniform_of("Phi3", {"num_key_value_heads": 1}, ("*mlp",), units=0.75, step=0.125)
    left = {8 - len(units) for units in result.plan.removed.values()}
    assert left == {result.model.config.num_attention_heads} == {5}


def test_a_uniform_model_whose_config_cannot_say_it_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model, result, _ = uniform_of("GPTNeoX", {}, ("*mlp*",))
    assert result.model.config.to_dict() == model.config.to_dict()
    assert "the config of GPTNeoXForCausalLM cannot say the widths" in caplog.text
    caplog.clear()
    uniform_of("GPTNeoX", {}, ("*attention",))
    assert "cannot say" not in caplog.text


@pytest.mark.slow
def test_a_narrower_embedding_is_said_too(tmp_path: Path) -> None:
    model, inputs = language_model("Llama"), inputs_of("Llama")
    width = model.config.hidden_size
    ranking = hp.Ranking(units=("embedding",), uniform=True, round_to=width // 3)
    result = hp.prune(model, inputs, [inputs], budget=hp.Budget(units=0.7), method="magnitude", ranking=ranking)
    assert (model.config.hidden_size, result.model.config.hidden_size) == (width, 2 * width // 3)
    result.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits.float(), result.model(**inputs).logits.float(), atol=1e-5)
