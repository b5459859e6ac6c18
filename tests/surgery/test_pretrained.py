"""Models of transformers come back from their config, in any process, beside what `save_pretrained` writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import CheckpointError, MissingDependencyError
from tests.huggingface import SIZES, config, package, tokens

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
READER = """
import sys
sys.path.insert(0, {root!r})
import torch, hessprune as hp
from tests.huggingface import package, tokens
package("transformers")
torch.save(hp.load({folder!r})(**tokens()).logits, {out!r})
"""


def bert() -> tuple[nn.Module, dict]:
    return package("transformers").BertForSequenceClassification(config(num_labels=3)).eval(), tokens()


def tied() -> tuple[nn.Module, dict]:
    """Return a language model whose output layer is its table of embeddings."""
    model = package("transformers").BertForMaskedLM(config(tie_word_embeddings=True)).eval()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    return model, tokens()


def eager() -> tuple[nn.Module, dict]:
    model = package("transformers").BertForSequenceClassification(config(attn_implementation="eager"))
    return model.eval(), tokens()


def vit() -> tuple[nn.Module, dict]:
    transformers = package("transformers")
    settings = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8)
    return transformers.ViTForImageClassification(settings).eval(), {"pixel_values": IMAGES}


def detr() -> tuple[nn.Module, dict]:
    """Return a detector whose backbone knows of no attention."""
    transformers = package("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4, "layer_type": "basic"}
    backbone = transformers.ResNetConfig(**sizes, out_features=["stage4"])
    sizes = {"d_model": 16, "num_queries": 3}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 16}
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(**sizes, backbone_config=backbone))
    return model.eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}


def mixed() -> tuple[nn.Module, dict]:
    """Return an encoder of images with a decoder of texts, each with an attention of its own."""
    transformers = package("transformers")
    vision = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8)
    text = config(is_decoder=True, add_cross_attention=True)
    settings = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    settings.decoder._attn_implementation = "eager"
    settings.encoder._attn_implementation = "sdpa"
    model = transformers.VisionEncoderDecoderModel(settings)
    return model.eval(), {"pixel_values": IMAGES, "decoder_input_ids": tokens()["input_ids"][:2]}


def pruned(make) -> tuple[nn.Module, hp.Plan, dict]:
    torch.manual_seed(0)
    model, batch = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    result = hp.prune(model, batch, [batch], budget=hp.Budget(macs=0.6), method="magnitude", compensate=False)
    return result.model, result.plan, batch


def outputs(model: nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("make", [bert, tied, eager, vit])
@pytest.mark.parametrize("order", ["save", "save, save_pretrained", "save_pretrained, save"])
def test_a_folder_is_loaded_without_a_factory(make, order, tmp_path):
    model, plan, batch = pruned(make)
    for step in order.split(", "):
        hp.save(model, plan, tmp_path) if step == "save" else model.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    again = hp.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert type(again) is type(model)
    assert not again.training
    is_exact = make is not eager or order != "save, save_pretrained"  # nothing in that folder tells of the attention
    torch.testing.assert_close(
        outputs(again, batch), outputs(model, batch), **({"rtol": 0, "atol": 0} if is_exact else {})
    )
    if make is tied:
        assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    assert {"config.json", "model.safetensors", "plan.json"} <= {path.name for path in tmp_path.iterdir()}


def test_another_process_that_never_saw_the_model_loads_it_bit_for_bit(tmp_path):
    model, plan, batch = pruned(bert)
    hp.save(model, plan, tmp_path / "model")
    root, out = Path(__file__).parents[2], tmp_path / "out.pt"
    program = READER.format(root=str(root), folder=str(tmp_path / "model"), out=str(out))
    environment = {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert torch.equal(torch.load(out), outputs(model, batch))


def test_the_config_on_disk_is_that_of_the_dense_model_and_the_models_own_stays(tmp_path):
    model, plan, _ = pruned(bert)
    hp.save(model, plan, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["architectures"], written["num_attention_heads"]) == (["BertForSequenceClassification"], 4)
    assert model.config.architectures is None
    assert len(written["id2label"]) == 3


def test_a_plan_before_the_last_training_still_fits(tmp_path):
    model, plan, batch = pruned(bert)
    hp.save(model, plan, tmp_path)
    with torch.no_grad():
        model.classifier.bias.add_(1)
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(hp.load(tmp_path), batch), outputs(model, batch))


def test_without_config_and_factory_there_is_one_clear_error(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.zeros(1, 4)
    result = hp.prune(model, x, [x], budget=hp.Budget(params=0.6), method="magnitude")
    folder = result.save(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"`factory` must be given for .*Pass the function .*hp.load\(folder, fac"
    ):
        hp.load(folder)


@pytest.mark.parametrize("architectures", [["NoSuchModel"], [], [3], ["no.name"], None])
def test_a_class_that_transformers_lacks_is_one_clear_error(architectures, tmp_path):
    model, plan, _ = pruned(bert)
    hp.save(model, plan, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"architectures": architectures}))
    with pytest.raises(CheckpointError, match=re.escape("config.json' must name a class of transformers under")):
        hp.load(tmp_path)


def test_a_folder_needs_transformers(tmp_path, monkeypatch):
    model, plan, _ = pruned(bert)
    hp.save(model, plan, tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="`transformers` is needed here"):
        hp.load(tmp_path)


@pytest.mark.parametrize("make", [detr, mixed])
def test_each_part_of_a_model_keeps_its_own_attention(make, tmp_path):
    model, plan, batch = pruned(make)
    hp.save(model, plan, tmp_path)
    again = hp.load(tmp_path)
    parts = [
        (m.config, n.config) for m, n in zip(model.modules(), again.modules(), strict=True) if hasattr(m, "config")
    ]
    assert all(a._attn_implementation == b._attn_implementation for a, b in parts)
    assert len({a._attn_implementation for a, _ in parts}) > 1
    assert torch.equal(outputs(again, batch), outputs(model, batch))
