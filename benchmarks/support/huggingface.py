"""25 architectures of Hugging Face from small configs: two layers of width 48 with 4 heads, and untrained weights."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, NEURONS, WORDS = 48, 2, 4, 96, 120
TEXT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "vocab_size": WORDS,
    "pad_token_id": 0,
}
IMAGES = {
    **{name: TEXT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    "image_size": 32,
    "patch_size": 8,
}
GROUPED = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
CLASSES = "ForSequenceClassification"


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, its config, what it takes, and where its feed-forward neurons are."""

    config: str
    model: str
    settings: dict[str, Any]
    inputs: str
    neurons: str
    """End of the name of the weight whose rows are the neurons."""
    layers: int = LAYERS


def _text(name: str, neurons: str, settings: dict[str, Any] | None = None, **more: Any) -> Architecture:
    return Architecture(f"{name}Config", f"{name}{CLASSES}", settings or TEXT, "tokens", neurons, **more)


def _images(name: str, neurons: str, settings: dict[str, Any] | None = None, **more: Any) -> Architecture:
    return Architecture(f"{name}Config", f"{name}ForImageClassification", settings or IMAGES, "images", neurons, **more)


_DISTIL = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS, "vocab_size": WORDS}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS, "vocab_size": WORDS}
_T5 = {"d_model": WIDTH, "d_kv": 12, "d_ff": NEURONS, "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": WORDS}
_STAGES = {"depths": [1, 1], "image_size": 32, "patch_size": 4}
_SWIN = _STAGES | {"embed_dim": 24, "num_heads": [2, 4], "window_size": 4}
_SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [24, WIDTH],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
}
_WHISPER = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": NEURONS,
    "num_mel_bins": 16,
    "max_source_positions": 20,
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_SPEECH = TEXT | {
    "conv_dim": (32, 32),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
ARCHITECTURES = {
    "bert": _text("Bert", "intermediate.dense.weight"),
    "roberta": _text("Roberta", "intermediate.dense.weight"),
    "distilbert": _text("DistilBert", "lin1.weight", _DISTIL),
    "electra": _text("Electra", "intermediate.dense.weight", TEXT | {"embedding_size": WIDTH}),
    "albert": _text("Albert", "ffn.weight", TEXT | {"embedding_size": 24}, layers=1),
    "deberta-v2": _text("DebertaV2", "intermediate.dense.weight", TEXT | {"relative_attention": True}),
    "mpnet": _text("MPNet", "intermediate.dense.weight"),
    "xlm-roberta": _text("XLMRoberta", "intermediate.dense.weight"),
    "vit": _images("ViT", "fc1.weight"),
    "deit": _images("DeiT", "fc1.weight"),
    "beit": _images("Beit", "mlp.fc1.weight"),
    "dinov2": _images("Dinov2", "mlp.fc1.weight", IMAGES | {"mlp_ratio": 2}),
    "swin": _images("Swin", "fc1.weight", _SWIN),
    "swinv2": _images("Swinv2", "intermediate.dense.weight", _SWIN),
    "convnext": _images("ConvNext", "pwconv1.weight", _STAGES | {"hidden_sizes": [24, WIDTH], "num_stages": 2}),
    "segformer": _images("Segformer", "mlp.fc1.weight", _SEGFORMER),
    "clip-vision": Architecture(
        "CLIPVisionConfig", "CLIPVisionModelWithProjection", IMAGES, "images", "mlp.fc1.weight"
    ),
    "siglip-vision": Architecture("SiglipVisionConfig", "SiglipVisionModel", IMAGES, "images", "mlp.fc1.weight"),
    "whisper": Architecture("WhisperConfig", "WhisperForAudioClassification", _WHISPER, "speech", "fc1.weight"),
    "wav2vec2": Architecture(
        "Wav2Vec2Config", f"Wav2Vec2{CLASSES}", _SPEECH, "waves", "feed_forward.intermediate_dense.weight"
    ),
    "gpt2": Architecture("GPT2Config", "GPT2LMHeadModel", _GPT2, "tokens", "mlp.c_fc.weight"),
    "t5-encoder": Architecture("T5Config", "T5EncoderModel", _T5, "tokens", "DenseReluDense.wi.weight"),
    "llama": Architecture("LlamaConfig", "LlamaForCausalLM", GROUPED, "tokens", "mlp.gate_proj.weight"),
    "qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM", GROUPED, "tokens", "mlp.gate_proj.weight"),
    "mistral": Architecture("MistralConfig", "MistralForCausalLM", GROUPED, "tokens", "mlp.gate_proj.weight"),
}


def build(name: str, batch_size: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return an untrained model in evaluation mode, and a batch for it by keyword."""
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    found = ARCHITECTURES[name]
    model = getattr(transformers, found.model)(getattr(transformers, found.config)(**found.settings))
    return model.eval(), _INPUTS[found.inputs](batch_size)


def neurons_found(name: str, model: nn.Module, owners: set[str]) -> bool:
    """Return whether the feed-forward neurons of every layer are units, given the weights that own the units' rows."""
    end = ARCHITECTURES[name].neurons
    layers = {weight for weight, _ in model.named_parameters() if weight.endswith(end)}
    return bool(layers) and layers <= owners


_INPUTS: dict[str, Any] = {
    "tokens": lambda n: {"input_ids": torch.randint(3, WORDS, (n, 16)), "attention_mask": torch.ones(n, 16).long()},
    "images": lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)},
    "speech": lambda n: {"input_features": torch.randn(n, 16, 40)},
    "waves": lambda n: {"input_values": torch.randn(n, 800)},
}
