"""A tiny BERT in a folder, with a tokenizer, and sentences with labels; tests skip where the packages are missing."""

import importlib
import importlib.util
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ("a", "bad", "boring", "bright", "dull", "fine", "film", "good", "great", "it", "movie", "plot", "poor", "slow")
WORDS += ("the", "was", "warm", "weak")
GOOD = {"bright", "fine", "good", "great", "warm"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": (
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, "
        "bool aligned) -> Tensor"
    ),
}
"""What torchvision looks for in a library that does not load beside a CPU build of torch."""


def package(name: str) -> Any:
    """Return transformers, timm or torchvision, or skip the test."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    _define_operators()
    return importlib.import_module(name)


@cache
def _define_operators() -> None:
    """Define what torchvision and all that looks for it need, unless its library loads."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except OSError:
        for operator, schema in _OPERATORS.items():
            with suppress(RuntimeError):  # defined already
                torch.library.define(f"torchvision::{operator}", schema)


def tokens(length: int = 6, batch_size: int = 2, vocabulary: int = 24) -> dict[str, torch.Tensor]:
    """Return a batch whose last sentence is padded."""
    ids = torch.randint(4, vocabulary, (batch_size, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[-1, -2:], mask[-1, -2:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def config(**settings: Any) -> Any:
    """Return the config of a tiny BERT."""
    return package("transformers").BertConfig(**SIZES, vocab_size=24, max_position_embeddings=40, **settings)


def write_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of whole words."""
    if importlib.util.find_spec("tokenizers") is None:
        pytest.skip("tokenizers is not installed")
    package = importlib.import_module("tokenizers")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = package.Tokenizer(package.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = package.pre_tokenizers.Whitespace()
    tokenizer.post_processor = package.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_model(folder: Path) -> Path:
    """Write a tiny BERT with weights, and its tokenizer."""
    torch.manual_seed(0)
    package("transformers").BertModel(config()).save_pretrained(folder)
    return write_tokenizer(folder)


def write_sentences(folder: Path, number: int = 40, seed: int = 0) -> Path:
    """Write `train.tsv` and `test.tsv`: a sentence is good if most of its telling words are."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for name, count in (("train", number), ("test", number // 2)):
        lines = []
        for _ in range(count):
            length = int(torch.randint(3, 9, (1,), generator=generator))
            drawn = [WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist()]
            lines.append(f"{' '.join(drawn)}\t{int(2 * len(GOOD & set(drawn)) > 1)}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_text(folder: Path) -> Path:
    """Write running text of known words as WikiText has it: 30 sequences of 8 words to prune on, 10 to test on."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, number in (("valid.txt", 8 * 30 + 3), ("test.txt", 8 * 10 + 5)):
        drawn = torch.randint(len(WORDS), (number,), generator=generator).tolist()
        (folder / name).write_text(" ".join(WORDS[word] for word in drawn) + "\n")
    return folder


def write_decoder(folder: Path) -> Path:
    """Write a tiny Llama with weights, and its tokenizer."""
    torch.manual_seed(0)
    sizes = SIZES | {"num_key_value_heads": 2, "vocab_size": 24, "max_position_embeddings": 32, "bos_token_id": 2}
    transformers = package("transformers")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, eos_token_id=3)).save_pretrained(folder)
    return write_tokenizer(folder)
