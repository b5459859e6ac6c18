"""Errors, each with the remedy that it names: the table that `test_remedies.py` carries out."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import hessprune as hp
from hessprune.curvature import lowest
from hessprune.foundation.imports import callable_at
from hessprune.lab.calibration import open_calibration
from hessprune.lab.compare import chosen_groups
from hessprune.lab.comparing import CompareSettings
from hessprune.lab.expanding import ExpandSettings
from hessprune.lab.losses import loss_by_name
from hessprune.lab.models import build_model
from hessprune.lab.named import NamedModel, budget_of, prune_named, shape_of
from hessprune.lab.recipe import load_recipe, packaged_recipe
from hessprune.lab.report.inspection import inspect_model
from hessprune.lab.settings import DataSettings, ModelSettings, PruneSettings
from hessprune.lab.store import StageStore
from hessprune.surgery.fits import check_plan
from hessprune.surgery.replay import replay
from hessprune.training.config import FinetuneConfig
from tests.costs.test_cache import Decoder
from tests.costs.test_cache import X as WIDE
from tests.provoking import (
    BARE_NORM,
    BATCHES,
    CONV,
    GROUPS,
    HALF,
    IMAGES,
    NET,
    SALIENCY,
    TWO,
    AtMostEight,
    Boxed,
    Net,
    OneStream,
    Sorting,
    Summed,
    Tied,
    X,
    Y,
    advised,
    boxed,
    boxed_plan,
    build_deep,
    calibrated,
    filled,
    first_plan,
    folder,
    images,
    implanted_plan,
    interactions,
    lazy,
    least,
    merged,
    noisy,
    normed,
    plain,
    plan,
    prepared,
    prune,
    pruned_in_training,
    recipe,
    scaled,
    score,
    score_images,
    second_plan,
    stuck,
    trace_distances,
    tune,
    widening,
    wider_plan,
    with_lock,
    word_traces,
    words,
    written,
)
from tests.test_attention_layouts import LAYOUTS


def prune_blocks(*, shared: bool = False, frames: bool = False, **options: Any) -> hp.PruneResult:
    """Prune a stack of two blocks, which may share a weight, or read halves of samples."""
    first, second = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
    if shared:
        second[2].bias = first[2].bias
    around = (nn.Unflatten(1, (2, 2)), nn.Flatten(0, 1), nn.Linear(2, 4)), (nn.Unflatten(0, (-1, 2)), nn.Flatten())
    before, behind = around if frames else ((), ())
    net = nn.Sequential(*before, first, second, *behind, nn.Linear(8 if frames else 4, 2))
    return hp.prune(net, X[:1], BATCHES, **{"budget": hp.Budget(units=0.5), "method": "magnitude"} | options)


def fused_groups(gqa: str) -> hp.Groups:
    """Find the groups of attention whose grouped queries, keys and values come from one layer."""
    layout = LAYOUTS["grouped, sliced"]
    return hp.find_groups(layout.make().double(), layout.inputs, gqa=gqa)


def cached(gqa: str) -> hp.PruneResult:
    """Halve the cache of a decoder whose queries share keys and values."""
    options = {"method": "magnitude", "compensate": False, "ranking": hp.Ranking(gqa=gqa)}
    return hp.prune(Decoder(), WIDE, [WIDE], budget=hp.Budget(kv_cache=0.5), **options)


def queries_planned(gqa: str) -> hp.Plan:
    """Plan for queries, given groups of a mode."""
    model = Decoder()
    groups = hp.find_groups(model, WIDE, gqa=gqa)
    saliency = hp.saliency(model, groups, [WIDE], "magnitude")
    ranking = hp.Ranking(gqa="free-queries")
    return hp.make_plan(model, groups, saliency, hp.Budget(macs=0.9), example_inputs=WIDE, ranking=ranking)


def measured() -> hp.Statistics:
    """Return statistics of the default method, with input moments."""
    return hp.measure(NET, X[:1], BATCHES, compensate=True)


def bare() -> hp.Statistics:
    """Return statistics without input moments."""
    return hp.measure(NET, X[:1], BATCHES, method="hap", compensate=False)


class Tabled(nn.Module):
    """Adds what two layers make of a table to what a third one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 8))
        self.make, self.read = nn.Linear(8, 6), nn.Linear(6, 2)
        self.wide, self.last = nn.Linear(X[0].numel(), 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.last(self.wide(x.flatten(1)).relu()) + self.read(self.make(self.table).relu())


TABLED = Tabled()


class Transposed(nn.Module):
    """A layer as transformers writes it for GPT-2: its weight is `(inputs, outputs)`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(X[0].numel(), 2)), nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return torch.addmm(self.bias, x, self.weight)


TRANSPOSED = nn.Sequential(Transposed())


def traced(ignore: tuple[str, ...]) -> hp.TraceResult:
    """Measure traces of a model with a table."""
    return hp.hessian_trace(TABLED, hp.find_groups(TABLED, X[:1], ignore), BATCHES)


class Worded(nn.Module):
    """Bigrams that take keyword arguments, as transformers do."""

    config: Any = None

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, decoder_input_ids: Any = None) -> Any:
        """Return logits of the decoder's words, if there are any."""
        del attention_mask
        return BIGRAMS(input_ids if decoder_input_ids is None else decoder_input_ids)

    def can_generate(self) -> bool:
        """Say what transformers say of models with words."""
        return True


class NamedForMaskedLM(Worded):
    """Predicts words in their places."""


class Pair(Worded):
    """An encoder–decoder without a first word."""

    config = SimpleNamespace(is_encoder_decoder=True)


class StartedPair(Worded):
    """An encoder–decoder."""

    config = SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=0, pad_token_id=0)


def worded(mask: Any, labels: Any = None, kind: type[Worded] = Worded) -> Any:
    """Evaluate bigrams on a dict with a mask and labels."""
    batch = {"input_ids": TEXTS[0], "attention_mask": mask, "labels": labels}
    return hp.evaluate(kind(), [{k: v for k, v in batch.items() if v is not None}], metric="perplexity")


def spelled(words: torch.Tensor, labels: torch.Tensor) -> Any:
    """Evaluate bigrams on words with labels."""
    return hp.evaluate(BIGRAMS, [(words, labels)], metric="perplexity")


def by_row(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy of rows, as the message words it."""
    return F.cross_entropy(out.flatten(0, 1), y.flatten())


BIGRAMS, TEXTS = nn.Embedding(5, 5), [torch.tensor([[0, 1, 4, 2]])]
DIGITS = NamedModel(name="digits-resnet", shape=(1, 8, 8))


@dataclass(frozen=True, slots=True)
class Row:
    """An error, and its remedy."""

    site: str
    """A piece of the message as it stands in the source, with `{}` for what is filled in."""
    provoke: Callable[[], Any]
    remedy: Callable[[str], Any]
    """Carries the remedy out; receives the message."""
    says: str = ""
    """A pattern of the remedy, as the message words it."""


ROWS = (
    # Statistics
    Row("`method` must name a method at least", lambda: hp.measure(NET, X[:1], BATCHES, method=()),
        lambda _: hp.measure(NET, X[:1], BATCHES, method="joint"), 'Write method="joint"'),
    Row("`stats` must be Statistics", lambda: prune(stats={}),
        lambda _: prune(stats=hp.measure(NET, X[:1], BATCHES)), r"Pass hp.measure\(model, example_inputs, batches\)"),
    Row("`stats` must be measured on the same", lambda: prune(stats=hp.measure(NET, X[:1], BATCHES, seed=1)),
        lambda _: prune(stats=hp.measure(NET, X[:1], BATCHES)), "with the arguments of hp.prune"),
    Row("`stats` must hold saliencies of the method", lambda: prune(method="hap", stats=measured()),
        lambda text: prune(method="hap", stats=hp.measure(NET, X[:1], BATCHES, method=advised(text, "='(\\w+)'"))),
        r"Call hp.measure\(.*method='hap'\)"),
    Row("`sequential` must be True, False or a folder", lambda: prune(sequential=3),
        lambda _: prune_blocks(sequential=True), "sequential=True"),
    Row("`sequential` must come with a refit", lambda: prune_blocks(sequential=True, compensate=False),
        lambda _: (prune_blocks(sequential=True), prune_blocks(compensate=False)), "Leave one of them out"),
    Row("`sequential` must come without implants", lambda: prune_blocks(sequential=True, implant=0.5),
        lambda _: prune_blocks(implant=hp.Implant(share=0.5, rank=1), budget=hp.Budget(macs=0.9)),
        "Leave one of them out"),
    Row("the model must be a stack of blocks", lambda: prune(sequential=True, compensate=True), lambda _: prune(),
        "Leave `sequential` out"),
    Row("must keep samples along the first axis", lambda: prune_blocks(frames=True, sequential=True),
        lambda _: prune_blocks(frames=True), "Leave `sequential` out"),
    Row("dependent(", lambda: prune_blocks(shared=True, sequential=True), lambda _: prune_blocks(shared=True),
        "Leave `sequential` out"),
    Row("`stats` must hold input moments", lambda: prune(method="hap", compensate=True, stats=bare()),
        lambda _: (prune(method="hap", stats=bare(), compensate=False), measured()),
        "compensate=True, or hp.prune with compensate=False"),
    Row("must hold statistics, got", lambda: hp.Statistics.load(folder() + "/absent"),
        lambda _: hp.measure(NET, X[:1], BATCHES).save(folder() + "/stats"), r"hp.measure\(…\).save\(path\)"),
    # Language models
    Row("`metric` must be a function of", lambda: hp.evaluate(BIGRAMS, TEXTS, metric="bleu"),  # type: ignore[arg-type]
        lambda _: hp.evaluate(BIGRAMS, TEXTS, metric="perplexity"), "Write metric='perplexity'"),
    Row("must hold at least one word that counts", lambda: hp.evaluate(BIGRAMS, [TEXTS[0][:, :1]], metric="perplexity"),
        lambda _: hp.evaluate(BIGRAMS, TEXTS, metric="perplexity"), "Give texts of two words or more"),
    Row("{} needs logits (N, T, words)", lambda: hp.evaluate(NET, BATCHES, metric="perplexity"),
        lambda _: hp.evaluate(BIGRAMS, TEXTS, metric="perplexity"), "Give batches of `input_ids`"),
    Row("words in `batches` must be integers", lambda: spelled(TEXTS[0], TEXTS[0].float()),
        lambda _: spelled(TEXTS[0], TEXTS[0].float().long()), r"`input_ids.long\(\)`"),
    Row("words in `batches` must be in [0, {})", lambda: spelled(TEXTS[0], TEXTS[0] + 3),
        lambda _: spelled(TEXTS[0], torch.tensor([[0, 1, -100, 2]])), "labels of −100"),
    Row("must say which words are padding", lambda: worded(torch.ones(1, 7)),
        lambda _: (worded(torch.ones(1, 4)), worded(torch.ones(1, 7), TEXTS[0])), r"of the shape \(1, 4\), or labels"),
    Row("must hold labels for {} of a model that does not predict", lambda: worded(None, kind=NamedForMaskedLM),
        lambda _: worded(None, TEXTS[0], kind=NamedForMaskedLM), r"Give \(inputs, labels\) with −100"),
    Row("must hold `decoder_input_ids` beside the labels", lambda: worded(None, TEXTS[0], kind=Pair),
        lambda _: worded(None, TEXTS[0], kind=StartedPair), "Set both in model.config"),
    Row("logits must have classes along axis 1", lambda: hp.evaluate(BIGRAMS, [(TEXTS[0], TEXTS[0])]),
        lambda _: (hp.evaluate(BIGRAMS, TEXTS, loss_fn="next_word"),
                   hp.evaluate(BIGRAMS, [(TEXTS[0], TEXTS[0])], loss_fn=by_row)),
        r"loss_fn='next_word', for labels of words .* cross_entropy\(logits.flatten\(0, 1\), labels.flatten\(\)\)"),
    # Budgets and plans
    Row("`Budget` must name exactly one of", hp.Budget, lambda _: hp.Budget(macs=0.5), r"Write Budget\(macs=0.5\)"),
    Row("`target` must be a LatencyTarget or", lambda: hp.Budget(latency_ms=1, target=3),
        lambda _: hp.Budget(latency_ms=1), "Leave it out"),
    Row("`target` must come with `latency_ms`", lambda: hp.Budget(macs=0.5, target=hp.LatencyTarget()),
        lambda _: hp.Budget(macs=0.5), "Leave it out"),
    Row("` must be below the dense model's", lambda: plan(hp.Budget(macs=10**9)),
        lambda text: plan(hp.Budget(macs=float(advised(text, r"Write macs=(\S+) to")))), "to keep half"),
    Row("`budget` must be a Budget", lambda: plan(0.5), lambda _: plan(hp.Budget(macs=0.5)),
        r"Write budget=hp.Budget\(macs=0.5\)"),
    Row("` needs a latency table here", lambda: plan(hp.Budget(latency_ms=0.5)),
        lambda _: plan(hp.Budget(latency_ms="100%", target=hp.latency_table(NET, GROUPS, X[:1]))),
        r"target=hp.latency_table\(model, groups, example_inputs\)"),
    Row("as a text must be a share above 0", lambda: hp.Budget(macs="half"),
        lambda _: (hp.Budget(macs=0.5), hp.Budget(macs="50%")), 'Write macs="50%"'),
    Row("` must be {}, got {}. Write {} to keep half", lambda: hp.Budget(macs=-1), lambda _: hp.Budget(macs=0.5),
        "macs=0.5"),
    Row("` above 1 must be a whole number", lambda: hp.Budget(macs=1.5),
        lambda _: (hp.Budget(macs=0.5), hp.Budget(macs=2)), r"lies in \(0, 1\]"),
    Row("`ranking.uniform` must stand beside", lambda: plan(hp.Budget(latency_ms="100%",
        target=hp.latency_table(NET, GROUPS, X[:1])), ranking=hp.Ranking(uniform=True)),
        lambda _: plan(hp.Budget(macs=0.5), ranking=hp.Ranking(uniform=True)), r"Write hp.Budget\(macs=0.5\)"),
    Row("`implant` must be 0 beside ranking.uniform", lambda: plan(ranking=hp.Ranking(uniform=True),
        implant=hp.Implant(share=0.5, rank=1)),
        lambda _: (plan(hp.Budget(macs=0.9), implant=hp.Implant(share=0.5, rank=1)),
            plan(ranking=hp.Ranking(uniform=True))), "Leave one of both out"),
    Row("` must find heads of keys and values that may leave", lambda: cached("free-queries"),
        lambda text: cached(advised(text, 'gqa="([\\w-]+)"')), r"or Budget\(macs=0.5\)"),
    Row("` must bound the cache of a decoder", lambda: plan(hp.Budget(kv_cache=0.5)),
        lambda _: plan(hp.Budget(macs=0.5)), r"Write Budget\(macs=0.5\)"),
    Row("out_of_reach(budget, least", lambda: plan(hp.Budget(macs=0.001)),
        lambda text: plan(least(text)), "Ask for at least"),
    Row("out_of_reach(self.budget", lambda: plan(hp.Budget(macs=0.001), saliency=interactions(torch.eye(8))),
        lambda text: plan(least(text), saliency=interactions(torch.eye(8))),
        "Ask for at least"),
    Row("`ranking.step` must be 1 for a plan", lambda: plan(ranking=hp.Ranking(step=0.5)),
        lambda _: (prune(ranking=hp.Ranking(step=0.5)), plan(ranking=hp.Ranking())),
        "Leave `step` out, or call hp.prune"),
    Row("`ranking` must be a Ranking", lambda: plan(ranking=8), lambda _: plan(ranking=hp.Ranking(round_to=2)),
        r"hp.Ranking\(round_to=8\)"),
    Row("`per_cost` must be True, False or None", lambda: hp.Ranking(per_cost="x"),
        lambda _: hp.Ranking(per_cost=None)),
    Row("`ignore` must be a tuple of name patterns", lambda: hp.Ranking(ignore="a"),
        lambda _: hp.Ranking(ignore=("layer1.*",)), r'ignore=\("layer1.\*",\)'),
    Row("`min_kept_units` must be pairs", lambda: hp.Ranking(min_kept_units=[3]),
        lambda _: hp.Ranking(min_kept_units=(("layer1.0.conv1", 8),)), "min_kept_units="),
    Row("`min_kept_units` must name groups", lambda: plan(ranking=hp.Ranking(min_kept_units=(("b", 2),))),
        lambda _: plan(ranking=hp.Ranking(min_kept_units=(("a", 2),)))),
    Row("`units` must be a tuple of kinds", lambda: hp.Ranking(units="heads"),
        lambda _: (hp.Ranking(units=("heads",)), hp.Ranking(units=None)), "Pass some of .*, or None"),
    Row("`units` must name kinds of units that the model has", lambda: prune(ranking=hp.Ranking(units=("heads",))),
        lambda _: prune(ranking=hp.Ranking(units=("neurons",))), r"Pass some of \('neurons',\)"),
    Row("`ignore` must hold name patterns here", lambda: plan(ranking=hp.Ranking(ignore=(NET.f,))),
        lambda _: (prune(ranking=hp.Ranking(ignore=(NET.f,))), hp.find_groups(NET, X, ignore=(NET.f,))),
        "hp.prune or hp.find_groups"),
    Row("`ignore` must match group names", lambda: plan(ranking=hp.Ranking(ignore=("zz",))),
        lambda _: hp.find_groups(NET, X), "See `find_groups`"),
    Row("`ignore` must leave a group to prune", lambda: plan(ranking=hp.Ranking(ignore=("a",))),
        lambda _: plan(ranking=hp.Ranking(ignore=())), "Drop one"),
    Row("`implant` must be 0 with", lambda: prune(budget=hp.Budget(latency_ms=0.5), implant=0.1),
        lambda _: hp.prune(CONV, IMAGES, [(IMAGES, Y[:8])], budget=hp.Budget(params=0.8), implant=0.1, method="hap"),
        "Bound macs or params instead"),
    Row("`implant` must be 0 for this model", lambda: plan(implant=0.3),
        lambda _: (plan(hp.Budget(params=0.9), implant=hp.Implant(share=0.3, rank=1)), plan()),
        r"Pass Implant\(share=…, rank=…\)"),
    Row("`plan.then` must start from a plan without implants", lambda: implanted_plan().then(second_plan()),
        lambda _: first_plan()[0].then(second_plan()), "Plan implants last"),
    Row("`next_plan` must be made for the model that this {} gives, on the same",
        lambda: first_plan()[0].then(second_plan(True)), lambda _: first_plan()[0].then(second_plan()),
        r"Make it for hp.apply_plan\(model, plan\)"),
    Row("`budget` must bound macs or params, got", lambda: hp.reallocate(NET, X[:1], BATCHES, budget=HALF),
        lambda _: hp.reallocate(NET, X[:1], BATCHES, budget=hp.Budget(params=1.0)), r"Pass hp.Budget\(params=1.0\)"),
    Row("`budget` and `moved` must leave {} = {}", lambda: hp.reallocate(NET, X[:1], BATCHES, moved=0.9),
        lambda text: hp.reallocate(NET, X[:1], BATCHES, moved=float(advised(text, r"moved=(\d\.\d+)"))), "Pass moved="),
    Row("`budget` must be at most {} = {}, what the model costs with",
        lambda: hp.reallocate(NET, X[:1], BATCHES, budget=hp.Budget(params=10**9)),
        lambda text: hp.reallocate(NET, X[:1], BATCHES, budget=hp.Budget(params=int(advised(text, r"params=(\d+)")))),
        r"Pass budget=hp.Budget\(params=\d"),
    Row("`moved` must leave two units in one group", lambda: hp.reallocate(NET, X[:1], BATCHES, moved=0.75),
        lambda text: hp.reallocate(NET, X[:1], BATCHES, moved=float(advised(text, r"moved=(\d\.\d+)"))), "Pass moved="),
    Row("`next_plan` must be a Plan or a Widening, got", lambda: first_plan()[0].then(None),
        lambda _: first_plan()[0].then(second_plan()), "Pass `plan` of the result of hp.prune or hp.widen"),
    Row("`ranking.units` must be kinds that can grow",
        lambda: hp.reallocate(NET, X[:1], BATCHES, ranking=hp.Ranking(units=("neurons", "qk"))),
        lambda _: hp.reallocate(NET, X[:1], BATCHES, ranking=hp.Ranking(units=("neurons",))), "Leave out what cannot"),
    Row("`ranking.uniform` must be False where the narrowest layers alone grow",
        lambda: hp.reallocate(NET, X[:1], BATCHES, ranking=hp.Ranking(uniform=True)),
        lambda _: hp.reallocate(NET, X[:1], BATCHES, ranking=hp.Ranking()), "Leave it out"),
    Row("`next_plan` must be made with example inputs of the same shapes",
        lambda: first_plan()[0].then(second_plan(rows=3)), lambda _: first_plan()[0].then(second_plan()),
        "Make it with inputs of those shapes"),
    Row("`saliency` must hold a group that the outputs",
        lambda: plan(saliency=hp.Saliency(SALIENCY, provenance={"unseen": [*SALIENCY]})),
        lambda _: prune(method="magnitude"), "choose by method='magnitude'"),
    Row("`num_removed` must hold numbers of units", lambda: hp.latency_table(NET, GROUPS, X[:1]).ms({"nowhere": 1}),
        lambda _: hp.latency_table(NET, GROUPS, X[:1]).ms({"a": 1}), "Take names and numbers from hp.find_groups"),
    Row("`momentum` must be below 1", lambda: hp.FinetuneConfig(momentum=1.0),
        lambda _: hp.FinetuneConfig(momentum=0.9), "Pass 0.9"),
    Row("`removed` must be a function from values", lambda: hp.Until(removed=0.5),
        lambda _: hp.Until(removed=lowest(0.5)), r"lowest\(0.5\)"),
    Row("`levels` must be removed shares", lambda: hp.find_bottlenecks(NET, X[:1], BATCHES, levels=0.5),
        lambda _: hp.find_bottlenecks(NET, X[:1], BATCHES, levels=(0.3, 0.5), method="magnitude"), "Pass a tuple"),
    Row("`levels` must hold one within reach", lambda: hp.find_bottlenecks(NET, X[:1], BATCHES, levels=(0.98,)),
        lambda _: hp.find_bottlenecks(NET, X[:1], BATCHES, levels=(0.5,)), "Pass lower ones"),
    Row("`draws` must be at most the number of samples", lambda: hp.find_bottlenecks(NET, X[:1], BATCHES, draws=99),
        lambda _: hp.find_bottlenecks(NET, X[:1], BATCHES, draws=2), "Ask for fewer"),
    Row("`plan` must be the plan that led to `model`", lambda: hp.save(NET, None, tempfile.mkdtemp()),
        lambda _: prune().save(tempfile.mkdtemp()), "Pass result.plan"),
    Row("`widths` must be numbers of units", lambda: hp.widen(NET, X[:1], {}),
        lambda _: hp.widen(NET, X[:1], {group.name: group.num_units + 1 for group in hp.find_groups(NET, X[:1])}),
        "Pass {group.name: units}"),
    Row("`widths` must name groups of the model", lambda: hp.widen(NET, X[:1], {"zz": 9}),
        lambda _: hp.find_groups(NET, X[:1]).table(), r"see hp.find_groups\(model, example_inputs\).table\(\)"),
    Row("`widths` must agree on group", lambda: hp.widen(Summed(), X[:1], {"a": 9, "b": 10}),
        lambda _: hp.widen(Summed(), X[:1], {"a": 9}), "Name it once"),
    Row("the widening must be applied to the model", lambda: replay(CONV, widening()),
        lambda _: replay(Net(), widening()), "the model before it was widened"),
    Row(" out of `widths`.", lambda: hp.widen(AtMostEight(True), X[:1], {"a": 9, "b": 9}),
        lambda _: hp.widen(AtMostEight(True), X[:1], {"b": 9}), "Leave 'a' out of `widths`"),
    Row("{} Leave {} out of `widths`.", lambda: hp.widen(AtMostEight(False), X[:1], {"a": 9, "b": 9}),
        lambda _: hp.widen(AtMostEight(False), X[:1], {"b": 9}), "Leave 'a' out of `widths`"),
    Row("`next_plan` must be a Plan", lambda: plan().then(3), lambda _: first_plan()[0].then(second_plan())),
    Row("`interactions` must have shape", lambda: plan(saliency=interactions(torch.eye(3))),
        lambda _: plan(saliency=interactions(torch.eye(8)))),
    Row("`interactions` must be finite", lambda: plan(saliency=interactions(torch.eye(8) * torch.nan)),
        lambda _: plan(saliency=interactions(torch.eye(8)))),
    Row("must be a tensor (U, U) or a `Factor`", lambda: plan(saliency=interactions([[1.0]])),
        lambda _: plan(saliency=interactions(torch.tensor(np.eye(8)))), r"Pass `torch.tensor\(…\)`"),
    # Groups and models
    Row("`ranking.gqa` must be that of the groups", lambda: queries_planned("kv-group"),
        lambda text: queries_planned(advised(text, "gqa='([\\w-]+)'")), "Pass groups of hp.find_groups"),
    Row("`groups` must hold a group at least", lambda: hp.saliency(NET, [], BATCHES, "magnitude"),
        lambda _: hp.saliency(NET, hp.find_groups(NET, X[:1]), BATCHES, "magnitude"), "Pass hp.find_groups"),
    Row("`groups` must be the groups of the model", lambda: plan(groups=["a"]),
        lambda _: plan(groups=hp.find_groups(NET, X[:1])), r"Pass hp.find_groups\(model, example_inputs\)"),
    Row("`groups` must be found on this model", lambda: plan(groups=hp.find_groups(CONV, IMAGES)),
        lambda _: plan(groups=hp.find_groups(NET, X[:1])), r"Pass hp.find_groups\(model, example_inputs\)"),
    Row("`plan` must be a Plan, got {}. {}", lambda: hp.verify(NET, NET, None),
        lambda _: hp.verify(NET, first_plan()[1], plan()), "Pass the result of hp.make_plan"),
    Row("`plan` must be a Plan, got {}. {}", lambda: hp.apply_plan(NET, plan().then(wider_plan())),
        lambda _: hp.widen(hp.apply_plan(NET, plan()), X[:1], wider_plan().widths),
        r"hp.apply_plan for a Plan, hp.widen\(model, example_inputs, step.widths\) for a Widening"),
    Row("`plan` must be a Plan, got {}. {}", lambda: hp.apply_plan(NET, widening()),
        lambda _: hp.widen(NET, X[:1], widening().widths), r"hp.widen\(model, example_inputs, widening.widths\)"),
    Row("`plan` must be made for `{}`", lambda: check_plan(CONV, plan()), lambda _: check_plan(NET, plan()),
        "Pass the model that it was made for"),
    Row("`pruned` must have the shapes that `plan` gives", lambda: hp.verify(NET, NET, plan()),
        lambda _: hp.verify(NET, hp.apply_plan(NET, plan()), plan()), r"hp.apply_plan\(dense, plan\)"),
    Row("the plan must be applied to the dense model", lambda: hp.apply_plan(CONV, plan()),
        lambda _: hp.apply_plan(Net(), plan()), "built by the same factory"),
    Row("`plan.{}` must hold units", lambda: hp.apply_plan(NET, replace(plan(), removed={"a": (8,)})),
        lambda _: (hp.apply_plan(NET, replace(plan(), removed={"a": (0, 7)}), check=False), hp.apply_plan(NET, plan())),
        "Number units from 0, or make the plan by hp.make_plan"),
    Row("`{}` must be a tensor for each group", lambda: plan(saliency=[1.0]), lambda _: plan(saliency=score()),
        "Pass the result of hp.saliency"),
    Row("`{}` must have an entry for group", lambda: plan(saliency={"b": torch.ones(8)}),
        lambda _: plan(saliency=score())),
    Row("`{}`[{}] must be a tensor", lambda: plan(saliency={"a": [1.0] * 8}),
        lambda _: plan(saliency={"a": torch.tensor([1.0] * 8)}), r"Pass torch.tensor\(values\)"),
    Row("`{}`[{}] must have shape ({},), got", lambda: plan(saliency={"a": torch.ones(3)}),
        lambda _: plan(saliency={"a": torch.ones(8)})),
    Row("`{}`[{}] must be finite", lambda: plan(saliency={"a": torch.full((8,), torch.nan)}),
        lambda _: plan(saliency=score())),
    Row("`gqa` must be 'kv-group' for this model", lambda: fused_groups("free-queries"),
        lambda text: fused_groups(advised(text, "must be '([\\w-]+)'")), "Leave `gqa` out"),
    Row("`ignore` must name modules of the model", lambda: hp.find_groups(NET, X, ignore=("zz",)),
        lambda _: hp.find_groups(NET, X, ignore=(dict(NET.named_modules())["f"],)), r"See `model.named_modules\(\)`"),
    Row("the model must have channels that can be removed", lambda: hp.find_groups(nn.Linear(4, 2), X),
        lambda _: hp.find_groups(NET, X), "at least one hidden layer"),
    Row("the model must have channels that can be removed", lambda: hp.find_groups(NET, X, ignore=("*",)),
        lambda _: hp.find_groups(NET, X), "Shorten `ignore`"),
    Row("the example inputs must reach every selection", lambda: hp.find_groups(Sorting(), -X[:1].abs()),
        lambda _: hp.find_groups(Sorting(), torch.cat([X, -X])), "Pass more samples as `example_inputs`"),
    Row("the model must be capturable by torch.export",
        lambda: hp.find_groups(Net(lambda h: h if h.sum() > 0 else -h), X),
        lambda _: (hp.find_groups(Net(lambda h: torch.where(h > 0, h, -h)), X), hp.find_groups(nn.Sequential(NET), X)),
        "control flow that depends on tensor values, or prune the submodules"),
    Row("dataclasses of {} must be registered", lambda: hp.find_groups(Boxed(), boxed()),
        lambda text: (torch.export.register_dataclass(type(box := boxed())), hp.find_groups(Boxed(), box)),
        r"Call torch.export.register_dataclass\(Box\) once"),
    Row("`example_inputs` must be given where a plan describes", lambda: hp.apply_plan(Boxed(), boxed_plan()[0]),
        lambda _: hp.apply_plan(Boxed(), boxed_plan()[0], example_inputs=boxed_plan()[1]), "Pass a batch of them"),
    Row("`example_inputs` must fit the model's forward", lambda: hp.find_groups(NET, X[:, :3]),
        lambda _: hp.find_groups(NET, X), "exactly as the model takes it"),
    Row("the dense model must give finite outputs", lambda: hp.apply_plan(Net(lambda h: h.log() * torch.nan), plan()),
        lambda _: hp.apply_plan(NET, plan(), example_inputs=X), "such as a batch of the data"),
    Row("`{}` must hold labels for cross-entropy", lambda: hp.evaluate(NET, [X]),
        lambda _: hp.evaluate(NET, BATCHES), "Yield .inputs, labels."),
    Row("inputs in `{}` must fit the model", lambda: hp.evaluate(NET, [(X[:, :3], Y)]),
        lambda _: hp.evaluate(NET, BATCHES), "Check size, channels and dtype"),
    Row("inputs in `{}` must fit the model", lambda: hp.measure(NET, X[:1], [boxed()]),
        lambda _: hp.measure(NET, X[:1], [vars(boxed())]), r"yield a dict of arguments, vars\(batch\)"),
    Row("weights must be finite", lambda: score(model=scaled(torch.nan)), lambda _: score(),
        "Load a checkpoint that converged"),
    # Models as they arrive
    Row("`model` must be a torch.nn.Module", lambda: hp.find_groups({"a": NET}, X), lambda _: hp.find_groups(NET, X),
        "Pass the module itself"),
    Row("`model` must have its parameters, got lazy ones", lambda: hp.find_groups(lazy(), X),
        lambda _: hp.find_groups(lazy(X), X), r"model\(inputs\)"),
    Row("`model` must be made of Python modules", lambda: hp.find_groups(torch.jit.script(plain()), X),
        lambda _: hp.find_groups(plain(), X), "Pass the model that torch.jit was given"),
    Row("_not_copyable(", lambda: hp.find_groups(with_lock(), X), lambda _: hp.find_groups(with_lock(removed=True), X),
        "Delete the attribute"),
    Row("weights must hold numbers", lambda: score(model=Net().to("meta")), lambda _: score(model=filled()),
        r"model.to_empty\(device='cpu'\) and load weights"),
    Row("`model` must hold its weights as plain parameters", lambda: hp.find_groups(normed(), X),
        lambda text: hp.find_groups(merged(text), X), r"Call torch.nn.utils.parametrize.remove_parametrizations"),
    Row("_without_statistics(", lambda: score_images(images(BARE_NORM())),
        lambda _: score_images(hp.reestimate_batchnorm(images(BARE_NORM()), [(IMAGES, Y[:8])])),
        r"model = hp.reestimate_batchnorm\(model, batches\)"),
    Row("`model` must have float32 weights", lambda: hp.prepare_qat(Net().half(), X[:2].half()),
        lambda _: hp.prepare_qat(Net().half().float(), X[:2]), r"model.float\(\) first, and pass float32 inputs"),
    Row("`example_inputs` must hold a sample", lambda: hp.find_groups(NET, None), lambda _: hp.find_groups(NET, X),
        "Pass a tensor, a tuple or a dict"),
    # Objectives
    Row("pairs, got {} of length {}", lambda: score(batches=[(X, X, Y)]), lambda _: score(batches=[((X,), Y)]),
        r"\(\(a, b\), targets\)"),
    Row("pairs, got {}.", lambda: score(batches=["a"]), lambda _: (score(batches=[X]), score(batches=[(X, Y)]))),
    Row("`{}` must hold non-empty batches", lambda: score("hap", [(X.numpy(), Y.numpy())]),
        lambda _: score("hap", [(torch.from_numpy(X.numpy()), torch.from_numpy(Y.numpy()))]),
        r"torch.from_numpy\(array\)"),
    Row("`{}` must hold non-empty batches", lambda: score("hap", [{"x": X.tolist(), "labels": Y}]),
        lambda _: score("hap", [{"x": torch.tensor(X.tolist()), "labels": Y}]), 'return_tensors="pt"'),
    Row("saliencies by {} must differ from zero", lambda: score("hap", model=scaled(0.0)),
        lambda _: score("magnitude", model=scaled(0.0)), "or use method='magnitude'"),
    Row("`loss_fn` must return one number", lambda: score("hap", loss_fn=lambda f, _: f),
        lambda _: score("hap", loss_fn=lambda f, _: f.square().mean()), "Average over samples"),
    Row("`loss_fn` must return a finite number", lambda: score("hap", loss_fn=lambda f, _: f.abs().mean().neg().log()),
        lambda _: score("hap", loss_fn=lambda f, _: f.square().mean().add(1).log()), "a logarithm or root of 0"),
    Row("`loss_fn` must depend on the model's outputs", lambda: tune(loss_fn=lambda f, _: f.detach().mean()),
        lambda _: tune(loss_fn=lambda f, _: f.square().mean()), "with torch's own functions"),
    Row("`{}` must give one number for a batch", lambda: hp.evaluate(NET, BATCHES, metric=lambda f, _: f),
        lambda _: hp.evaluate(NET, BATCHES, metric=lambda f, _: f.mean()), "Average over samples"),
    Row("`{}` must take the output and the targets", lambda: tune(loss_fn=lambda f: f.square().mean()),
        lambda _: tune(loss_fn=lambda output, targets: output.square().mean()), "lambda output, targets"),
    Row("`{}` must accept the output and the targets", lambda: tune(loss_fn=lambda y, f: F.cross_entropy(f, y)),
        lambda _: tune(loss_fn=lambda f, y: F.cross_entropy(f, y)), r"called as loss_fn\(output, targets\)"),
    Row("must hold targets for `{}`", lambda: hp.evaluate(NET, [X], loss_fn=F.mse_loss),
        lambda _: (hp.evaluate(NET, [(X, torch.zeros(24, 2))], loss_fn=F.mse_loss),
                   hp.evaluate(NET, [X], loss_fn=lambda f, _: f.square().mean())), r"Yield \(inputs, targets\)"),
    Row("`metric` must be a number for each batch", lambda: hp.evaluate(NET, BATCHES, metric=lambda f, _: math.nan),
        lambda _: hp.evaluate(NET, BATCHES, metric=lambda f, _: 0), "return 0 there"),
    Row("`batches` must hold labels for {}", lambda: score("taylor", [X]),
        lambda _: (score("taylor", [(X, Y)]), score("taylor", [X], loss_fn=lambda f, _: f.square().mean())),
        "or the loss as `loss_fn`"),
    Row("`loss_fn` must be a function", lambda: score("hap", loss_fn="perplexity"),
        lambda _: (score("hap", [(X, torch.zeros(24, 2))], loss_fn=torch.nn.MSELoss()),
                   hp.evaluate(BIGRAMS, TEXTS, loss_fn="next_word")),
        r"only 'next_word', for language models; else pass one such as torch.nn.MSELoss\(\)"),
    Row("`loss_fn` must be a loss, got the class", lambda: score("hap", loss_fn=nn.CrossEntropyLoss),
        lambda _: score("hap", loss_fn=nn.CrossEntropyLoss()), r"Write nn.CrossEntropyLoss\(\)"),
    Row("Give as many targets as inputs", lambda: score("hap", [(X, Y[:3])]),
        lambda _: (score("hap", [(X[:3], Y[:3])]), score("hap", [X])), "inputs alone"),
    Row("Give (inputs, targets), or the loss", lambda: score("hap", [(X, Y[:3])], loss_fn=nn.MSELoss()),
        lambda _: score("hap", [(X, torch.zeros(24, 2))], loss_fn=nn.MSELoss())),
    Row("must hold one number per output for {}", lambda: score("hap", [(X, torch.zeros(24, 5))], loss_fn=nn.MSELoss()),
        lambda _: score("hap", [(X, torch.zeros(24, 2))], loss_fn=nn.MSELoss()), "Give targets of that shape"),
    Row("`outputs` must be names of outputs", lambda: score("hap", [X], outputs="x"),
        lambda _: score("hap", [X], TWO, outputs=["logits"]), r"Use outputs=\['logits'\]"),
    Row("`outputs` must weigh {}", lambda: score("hap", [X], TWO, outputs={"logits": -1}),
        lambda _: score("hap", [X], TWO, outputs={"logits": 1.0}), "Use 1.0"),
    Row("`outputs` must name outputs of the model", lambda: score("hap", [X], TWO, outputs=["logit"]),
        lambda text: score("hap", [X], TWO, outputs=[advised(text, "mean '(.*)'")]), "Did you mean 'logits'"),
    # Saliencies
    Row("method 'bn_scale' must find a BatchNorm", lambda: words("bn_scale"), lambda _: words("magnitude"),
        "Use another method"),
    Row("`num_probes` must be None with estimator='exact'", lambda: hp.HAP(num_probes=3),
        lambda _: (hp.HAP(estimator="rademacher", num_probes=3), hp.HAP(estimator="hutchinson", num_probes=3)),
        "estimator='rademacher' or 'hutchinson'"),
    Row("`method` must be a name such as", lambda: score(3), lambda _: (score("joint"), score(hp.Joint())),
        r"'joint' or a value such as hp.Joint\(\)"),
    Row("`method` must be a value, got the class", lambda: score(hp.Joint), lambda _: score(hp.Joint()),
        r"Write hp.Joint\(\)"),
    Row("`seed` must be that of `method`", lambda: score(hp.Random(seed=2), seed=1),
        lambda _: (score(hp.Random(seed=2)), score(hp.Random(), seed=1)), "Give one of them"),
    Row("`method` must read NAME", lambda: score("hap("), lambda text: score(advised(text, "for example '(.*)'")),
        "hap"),
    Row("option of method {} must read NAME=VALUE", lambda: score("hap(estimatr=exact)"),
        lambda text: score(f"hap({advised(text, 'mean .(.*).[?]')}=exact)"), "Did you mean 'estimator'"),
    Row("`memory_limit` must hold the activations", lambda: score(hp.HAP(memory_limit=1)),
        lambda _: score(hp.HAP(memory_limit=10**9)), "Raise it"),
    Row("`precision` must be one that the device computes in", lambda: score(hp.HAP(precision="fp16")),
        lambda text: score(hp.HAP(precision=advised(text, "precision='(.*)'"))), "bf16"),
    Row("the model's outputs must be finite", lambda: score("hap", [(X * torch.nan, Y)]), lambda _: score("hap"),
        "Check weights and inputs"),
    Row("the model must repeat its outputs", lambda: score("hap", model=noisy(only_training=False)),
        lambda _: score("hap", model=noisy(only_training=True)), "only if self.training"),
    Row("`model` and `loss_fn` must be twice differentiable",
        lambda: trace_distances("hutchinson"),
        lambda text: trace_distances(advised(text, "estimator='(.*)':")),
        "estimator='exact'"),
    Row("`slices` must name weights of convolutions", lambda: word_traces(),
        lambda text: word_traces((advised(text, r"ignore=\('(.*)',\)"),)),
        "or use method='magnitude'"),
    Row("`slices` must name weights that read samples", lambda: traced(()),
        lambda text: (traced((advised(text, r"ignore=\('(.*)',\)"),)), score(model=TABLED)),
        "or use method='magnitude'"),
    Row("`loss_fn` must read outputs with an axis of samples",
        lambda: score("hap", model=TWO, loss_fn=lambda output, _: output["like"].square().mean()),
        lambda _: score("hap", model=TWO, loss_fn=lambda output, _: (output["logits"] @ output["logits"].T).mean()),
        "Compute it in the loss from"),
    Row("`loss_fn` must average over samples", lambda: score("hap", loss_fn=nn.CrossEntropyLoss(reduction="sum")),
        lambda _: score("hap", loss_fn=nn.CrossEntropyLoss(reduction="mean")), "reduction='mean'"),
    Row("got only ignored ones", lambda: score("hap", [(X, torch.full_like(Y, -100))]), lambda _: score("hap"),
        "Check the targets"),
    # Arguments and data
    Row("`{}` must be one of {}, got", lambda: score("happ"), lambda text: score(advised(text, "Did you mean '(.*)'")),
        "Did you mean 'hap'"),
    Row("`{}` must be {} {}, got", lambda: FinetuneConfig(epochs=-1), lambda _: FinetuneConfig(epochs=0),
        "of at least 0"),
    Row("`{}` must be {}, got {}.", lambda: hp.HAP(num_probes="x"), lambda _: hp.HAP(num_probes=None),
        "an integer or None"),
    Row("`{}` must be of type", lambda: prune(ranking=8), lambda _: prune(ranking=hp.Ranking(round_to=2)),
        "Write for example"),
    Row("`{}` must be True or False", lambda: prune(compensate=3), lambda _: prune(compensate=False)),
    Row("`{}` must be a finite number above 0", lambda: FinetuneConfig(lr=0.0), lambda _: FinetuneConfig(lr=0.1),
        "Choose a positive one"),
    Row("must be re-iterable, got a one-shot", lambda: score(batches=iter(BATCHES)),
        lambda _: score(batches=list(iter(BATCHES))), r"`list\(batches\)`"),
    Row("that gives nothing when it is read again", lambda: score("hap", batches=OneStream()),
        lambda _: score("hap"), "return a new iterator"),
    Row("must be an iterable of batches", lambda: score(batches=3),
        lambda _: score(batches=torch.utils.data.DataLoader([(X[0], 0)])), "a list or a DataLoader"),
    Row("must hold at least one (inputs, targets) pair", lambda: score(batches=[]), lambda _: score()),
    Row("must hold non-empty batches", lambda: score(batches=[(X[:0], Y[:0])]), lambda _: score()),
    Row("labels in `{}` must be in [0, {})", lambda: score("hap", [(X, Y + 5)]),
        lambda _: (score("hap", [(X, Y)]), score("hap", [(X, Y + 5)], model=Net(last=nn.Linear(8, 9)))),
        r"Renumber the labels from 0, .*ignore_index=6"),
    Row("must hold at least one label that counts, got none", lambda: hp.evaluate(NET, [(X, torch.full_like(Y, -100))]),
        lambda _: hp.evaluate(NET, BATCHES), "Check the targets"),
    Row("outputs must be finite, got NaN or infinity. Likely", lambda: hp.evaluate(scaled(torch.nan), BATCHES),
        lambda _: hp.evaluate(NET, BATCHES), "take an earlier checkpoint"),
    Row("the model must return logits of shape",
        lambda: hp.evaluate(Net(last=nn.Identity(), step=lambda h: h.sum()), BATCHES),
        lambda _: hp.evaluate(NET, BATCHES), "`loss_fn`"),
    Row("must hold one integer label", lambda: hp.evaluate(NET, [(X, torch.zeros(24, 5, dtype=torch.int64))]),
        lambda _: (hp.evaluate(NET, BATCHES), hp.evaluate(NET, [(X, torch.zeros(24, 2))], loss_fn=F.mse_loss)),
        "`loss_fn`"),
    Row("must be class probabilities", lambda: hp.evaluate(NET, [(X, torch.full((24, 2), 3.0))]),
        lambda _: hp.evaluate(NET, [(X, torch.full((24, 2), 3.0))], loss_fn=torch.nn.MSELoss()),
        r"loss_fn=torch.nn.MSELoss\(\)"),
    Row("must be a tensor of labels", lambda: hp.evaluate(NET, [(X, {"a": Y})]),
        lambda _: hp.evaluate(NET, [(X, {"a": Y})], loss_fn=lambda f, y: F.cross_entropy(f, y["a"])), "`loss_fn`"),
    # Training
    Row("`teacher` must be a model when distill_weight", lambda: tune(distill_weight=0.5),
        lambda _: (tune(distill_weight=0.5, teacher=NET), tune(distill_weight=0.0)),
        "Pass the dense model, or distill_weight=0"),
    Row("`teacher` must answer like the model", lambda: tune(teacher=Net(last=nn.Linear(8, 3)), distill_weight=0.5),
        lambda _: (tune(teacher=NET, distill_weight=0.5), tune(distill_weight=0.0)), "or distill_weight=0"),
    Row("`model` must have a parameter with requires_grad=True", lambda: tune(Net().requires_grad_(False)),
        lambda _: tune(Net().requires_grad_(False).requires_grad_(True)), r"model.requires_grad_\(True\)"),
    Row("`precision` must be 'fp32' or 'bf16' on a CPU", lambda: tune(precision="fp16"),
        lambda _: tune(precision="bf16"), "precision='bf16'"),
    Row("_diagnosis(run, f'loss must be finite", lambda: tune(train=[(X * 1e30, Y)] * 3, lr=1e30),
        lambda _: tune(lr=0.01, clip_norm=1.0), "lower `lr` .* or set `clip_norm`"),
    Row("`checkpoint_dir` must hold a run of the same settings", lambda: (stuck(folder(), 0.01), stuck(folder(), 0.02)),
        lambda _: stuck(tempfile.mkdtemp(), 0.02), "or choose another"),
    Row("`plan` must give the shapes of `model`",
        lambda: hp.save(hp.apply_plan(first_plan()[1], second_plan()), second_plan(True), folder()),
        lambda _: hp.save(hp.apply_plan(first_plan()[1], second_plan()), first_plan()[0].then(second_plan()), folder()),
        r"plan.then\(next_plan\)"),
    Row("`factory` must be given for", lambda: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp())),
        lambda _: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp()), Net), r"hp.load\(folder, factory\)"),
    Row("`factory` must be a function", lambda: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp()), NET),
        lambda _: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp()), lambda: NET),
        r"hp.load\(folder, lambda: model\)"),
    Row("`factory` must return the dense model",
        lambda: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp()), lambda: None),
        lambda _: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp()), Net), "that it builds"),
    Row("`prune` must return what hp.prune returns", lambda: pruned_in_training(lambda model: model),
        lambda _: pruned_in_training(lambda model: hp.prune(model, X, [X], budget=HALF)),
        r"PruneCallback\(lambda model: hp.prune"),
    Row("the checkpoint must fit the factory's model",
        lambda: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp()), lambda: Net(last=nn.Linear(8, 3))),
        lambda _: hp.load(hp.save(first_plan()[1], plan(), tempfile.mkdtemp()), Net),
        "Use the factory that built the dense model"),
    # Integers and files for other runtimes
    Row("`weight_bits` must be {} for target", lambda: hp.Scheme(weight_bits=5),
        lambda text: hp.Scheme(weight_bits=int(advised(text, "Pass weight_bits=(.)"))), "Pass weight_bits"),
    Row("`model` must be a prepared model", lambda: hp.calibrate(NET, BATCHES), lambda _: calibrated(),
        "hp.prepare_qat"),
    Row("activations must be calibrated before conversion", lambda: hp.convert_qat(prepared()),
        lambda _: hp.convert_qat(calibrated()), r"Call hp.calibrate\(model, batches\)"),
    Row("activations must be calibrated before the model is run", lambda: prepared()(X), lambda _: calibrated()(X),
        r"Call hp.calibrate\(model, batches\)"),
    Row("inputs must have the sizes that the model was captured for",
        lambda: hp.calibrate(hp.prepare_qat(CONV, IMAGES), [F.interpolate(IMAGES, size=9)]),
        lambda _: hp.calibrate(hp.prepare_qat(CONV, IMAGES), [F.interpolate(IMAGES, size=6)]), "Resize them"),
    Row("`keep_fp32` must be a list of patterns", lambda: hp.prepare_qat(NET, X[:2], keep_fp32="a"),
        lambda _: hp.prepare_qat(NET, X[:2], keep_fp32=["a"]), r"Write \['a'\]"),
    Row("`keep_fp32` must name layers", lambda: hp.prepare_qat(NET, X[:2], keep_fp32=["b"]),
        lambda text: hp.prepare_qat(NET, X[:2], keep_fp32=[advised(text, "Known: (.),")]), "Known: a, f"),
    Row("`model` must hold nn.Linear or convolutions for INT8", lambda: hp.prepare_qat(TRANSPOSED, X[:2].flatten(1)),
        lambda _: hp.prepare_qat(nn.Sequential(nn.Linear(X[0].numel(), 2)), X[:2].flatten(1)), "as nn.Linear"),
    Row("`model` must have a convolution or linear layer to quantise",
        lambda: hp.prepare_qat(NET, X[:2], keep_fp32=["*"]), lambda _: hp.prepare_qat(NET, X[:2]),
        "Shorten `keep_fp32`"),
    Row("`model` must be a float model", lambda: hp.prepare_qat(prepared(), X[:2]),
        lambda _: hp.prepare_qat(NET, X[:2]), "Pass the model before hp.prepare_qat"),
    Row("`model` must be converted to integers first", lambda: hp.export_onnx(prepared(), X[:2], f"{folder()}/m.onnx"),
        lambda _: hp.convert_qat(calibrated()), r"Call hp.convert_qat\(model\)"),
    Row("`model` must be capturable by torch.export{}",
        lambda: hp.export_onnx(Net(lambda h: h.view(1, 8)), X[:1], f"{folder()}/m.onnx"),
        lambda _: hp.export_onnx(Net(lambda h: h.view(1, 8)), X[:1], f"{folder()}/m.onnx", dynamic_batch=False),
        "pass dynamic_batch=False"),
    Row("ONNX Runtime must return what torch returns",
        lambda: hp.export_onnx(NET, X[:1], f"{folder()}/m.onnx", tolerance=0),
        lambda _: hp.export_onnx(NET, X[:1], f"{folder()}/m.onnx", tolerance=1e-3), "raise `tolerance`"),
    Row("`model` must be a module or an ONNX file", lambda: hp.measure_latency(f"{folder()}/none.onnx", X, repeats=1),
        lambda _: hp.measure_latency(f"{folder()}/m.onnx", X, repeats=1), "Check the path"),
    Row("inputs must fit the ONNX file, whose", lambda: hp.evaluate(f"{folder()}/m.onnx", [(X.double(), Y)]),
        lambda text: hp.evaluate(f"{folder()}/m.onnx", [(X.to(getattr(torch, advised(text, r"to\(torch.(\w+)"))), Y)]),
        r"Convert inputs: x.to\(torch.float32\)"),
    Row("inputs must fit the ONNX file, whose",
        lambda: hp.measure_latency(hp.export_onnx(NET, X[:2], f"{folder()}/two.onnx", dynamic_batch=False), X),
        lambda _: hp.measure_latency(hp.export_onnx(NET, X[:2], f"{folder()}/m.onnx", dynamic_batch=True), X),
        "Pass 2 samples, or export the file with dynamic_batch=True"),
    Row("inputs must fit the ONNX file, got",
        lambda: hp.measure_latency(hp.export_onnx(nn.Embedding(4, 2), Y, f"{folder()}/words.onnx"), 9 + Y),
        lambda _: hp.measure_latency(f"{folder()}/words.onnx", Y, repeats=1), "Give numbers and sizes that"),
    Row("`example_inputs` must hold {} tensors", lambda: hp.measure_latency(f"{folder()}/m.onnx", (X, X), repeats=1),
        lambda _: hp.measure_latency(f"{folder()}/m.onnx", X, repeats=1), "that the file was exported with"),
    Row("`models` must be a mapping", lambda: hp.compare_latency([NET], X, repeats=1),  # type: ignore[arg-type]
        lambda _: hp.compare_latency({"dense": NET, "pruned": first_plan()[1]}, X, repeats=1),
        "{'dense': model, 'pruned': pruned}"),
    # Recipes and comparisons
    Row("`{}` must name at least one and none twice", lambda: CompareSettings(seeds=(0, 0)),
        lambda _: CompareSettings(seeds=(0, 1))),
    Row("`budgets` must be kept shares", lambda: CompareSettings(budgets=(50,)),
        lambda _: CompareSettings(budgets=(0.5,)), "Write 0.5"),
    Row("`lrs` must be finite numbers above 0", lambda: CompareSettings(lrs=(0.0,)),
        lambda _: CompareSettings.from_text({"lrs": "0.03,0.1"}), "0.03,0.1"),
    Row("a row of `methods` must change", lambda: CompareSettings(methods=("hap; stp=1",)),
        lambda _: CompareSettings(methods=("hap; step=0.5",)), "Did you mean 'step'"),
    Row("`{}` must be numbers with commas", lambda: CompareSettings.from_text({"seeds": "a"}),
        lambda _: CompareSettings.from_text({"seeds": "1,2"}), "Write for example 1,2"),
    Row("`channels` must be 'all' for this model",
        lambda: chosen_groups(hp.find_groups(Tied(), X), CompareSettings(channels="inner")),
        lambda _: chosen_groups(hp.find_groups(Tied(), X), CompareSettings(channels="all"))),
    Row("`loss` must be one of", lambda: loss_by_name("msee"), lambda text: loss_by_name(advised(text, "mean '(.*)'")),
        "Did you mean 'mse'"),
    Row("module {} of `{}` {} cannot be imported", lambda: callable_at("nowhere:f", "loss"),
        lambda _: callable_at("torch.nn.functional:mse_loss", "loss"), "with that folder on PYTHONPATH"),
    Row("module {} must hold a callable {}", lambda: callable_at("torch.nn.functional:mse_los", "loss"),
        lambda text: callable_at(f"torch.nn.functional:{advised(text, 'mean .(.*).[?]')}", "loss"), "Did you mean"),
    Row("`name` must be a known model", lambda: build_model("resnet57", num_classes=2),
        lambda _: build_model("resnet56", num_classes=2), "Known: .*resnet56"),
    Row("module {} of `name` {} cannot be imported", lambda: build_model("nowhere:f", num_classes=2),
        lambda _: build_model("tests.nets:Fine", num_classes=2), "with that folder on PYTHONPATH"),
    Row("file {} of `name` must exist", lambda: build_model("nowhere.py:f", num_classes=2),
        lambda _: build_model("tests/nets.py:Fine", num_classes=2), "path/to/file.py:function"),
    Row("file {} of `name` cannot be run", lambda: build_model(f"{written('1 / 0', 'net.py')}:f", num_classes=2),
        lambda text: build_model("tests/nets.py:Fine", num_classes=2), "Run it alone first: python"),
    Row("`budget` must be QUANTITY=VALUE", lambda: budget_of("half"), lambda _: budget_of("macs=0.5"), "macs=0.5"),
    Row("`shape` must be positive integers with commas", lambda: shape_of("3x32"), lambda _: shape_of("3,32,32"),
        "3,32,32"),
    Row("`calibration` must be given for method", lambda: prune_named(DIGITS, folder(), budget="macs=0.5"),
        lambda _: prune_named(DIGITS, folder(), budget="macs=0.5", method="magnitude"), "one of .*magnitude"),
    Row("`methods` and `seeds` must name at least one, and", lambda: ExpandSettings(methods=()),
        lambda _: ExpandSettings(), "Leave them out"),
    Row("`shape` must be given for model",
        lambda: prune_named(NamedModel(name="digits-resnet"), folder(), budget="macs=0.5", method="magnitude"),
        lambda _: prune_named(DIGITS, folder(), budget="macs=0.5", method="magnitude"), "--shape"),
    Row("`calibration` must be SOURCE:PATH", lambda: open_calibration("nowhere", "resnet20"),
        lambda _: open_calibration("digits", "resnet20"), "image-folder:PATH"),
    Row("`shape` must be that of the samples",
        lambda: open_calibration("digits", "resnet20").fitted_to(NET, (3, 9, 9)),
        lambda _: open_calibration("digits", "resnet20").fitted_to(NET, (1, 8, 8)), "write 1,8,8"),
    Row("factory {} must return an nn.Module", lambda: build_model("collections:Counter", num_classes=2),
        lambda _: build_model("tests.nets:Fine", num_classes=2)),
    Row("factory {} must be callable with num_classes", lambda: build_model("torch.nn:Linear", num_classes=2),
        lambda _: build_model("tests.nets:Fine", num_classes=2), "Wrap it in a function"),
    Row("recipe must be a mapping of sections", lambda: load_recipe(written("- a")), lambda _: recipe(),
        "Start with the sections model and prune"),
    Row("_joined(unknown)", lambda: recipe(sed=1), lambda text: recipe(**{advised(text, "mean '(.*)'"): 1}),
        "Did you mean 'seed'"),
    Row("_joined([_problem", lambda: recipe(prune={}), lambda _: recipe(), "must be given"),
    Row("packaged recipe must exist", lambda: packaged_recipe("x"), lambda _: load_recipe(packaged_recipe("digits")),
        "Give the path of a YAML file"),
    Row("`--set` must be KEY=VALUE", lambda: load_recipe(packaged_recipe("digits"), ["a"]),
        lambda text: load_recipe(packaged_recipe("digits"), [advised(text, r"example (\S+)")]),
        "prune.budget.macs=0.4"),
    Row("must have a YAML value", lambda: load_recipe(packaged_recipe("digits"), ["seed=[1"]),
        lambda _: load_recipe(packaged_recipe("digits"), ["seed=1"])),
    Row("`input_shape` must be positive integers", lambda: inspect_model("resnet20", input_shape="x"),
        lambda text: inspect_model("resnet20", input_shape=advised(text, r"Write (\S+)")), "3,32,32"),
    Row("`input_shape` must be that of one sample", lambda: inspect_model("resnet20", input_shape="3,32"),
        lambda text: inspect_model("resnet20", input_shape=advised(text, r"for example (\S+)")), "3,32,32"),
    Row("`mean` and `std` must be given together", lambda: DataSettings(mean=(0.5,)),
        lambda _: DataSettings(mean=(0.5,), std=(0.5,)), "Add the other"),
    Row("`model` must have either `weights` or `pretrain`", ModelSettings,
        lambda _: (ModelSettings(weights="w"), ModelSettings(pretrain=FinetuneConfig())),
        "Name a checkpoint, or how to train"),
    Row("`method` must be text such as", lambda: PruneSettings(budget=HALF, method=hp.Joint()),
        lambda _: PruneSettings(budget=HALF, method="joint"), "'joint'"),
    Row("`name` of a stage must be a plain folder name", lambda: StageStore(folder()).run("../1-dense", print),
        lambda _: StageStore(folder()).run("1-dense", lambda _: None), "Write '1-dense'"),
    *(
        Row(
            f"`depth` must be {form}",
            lambda name=name: build_deep(name, 21),
            lambda _, name=name, depth=depth: build_deep(name, depth),
            f"Take .*{depth}",
        )
        for form, name, depth in (
            ("3n + 4", "densenet:DenseNet", 22),
            ("9n + 2", "preresnet:PreResNet", 20),
            ("6n + 2", "resnet:ResNet", 20),
            ("6n + 4", "wide_resnet:WideResNet", 16),
        )
    ),
)  # fmt: skip

NO_ROW = {
    # The remedy is another file, free space, a package or a machine.
    "foundation.files": "",
    "foundation.checks": "is needed here and cannot be imported",
    "foundation.imports": "import_advice",
    "lab.data": "",
    "lab.run": "must be installed for this recipe",
    "lab.calibration": "must hold image_mean",
    "lab.models.weights": "",
    "lab.models.folders": "",
    "lab.models.zoos": "",
    "lab.store": "must be whole|must be removable",
    "planning.inputs": "",
    "planning.packing": "",
    "planning.plan_file": "",
    "pruning.statistics": "has format",
    "planning.reading": "",
    "bottlenecks.values": "",
    "planning.widening_file": "",
    "costs.latency_table": "",
    "training.resume": "_damage",
    "pruning.callback": "must run in one process",
    "surgery.pretrained": "must name a class of transformers|must be a config that transformers|import_advice",
    "surgery.checkpoint": "must be a plan written by|must hold a {}|complete safetensors|beside the other file",
    "lab.report.document": "",
    "lab.recipe": "readable YAML file|recipe must be YAML",
    "quantize.backend": "which is not installed",
    "lab.context": "`device` must be available",
    # A processor, or a version of torch, that a test does not have.
    "training.learner": "'fp32' or 'fp16' on this device",
    "quantize.qat": "`target` must support the model|`target` must find layers",
    # What the package hands to itself, or a contributor registers.
    "curvature.readout": "must hold slices with one|must name parameters|must hold positions",
    "methods.slices": "must belong to this model",
    "methods.method": "`name` of a method must be new",
    "operators.table": "must be new to the table",
    "foundation.processes": r"differing\(name\)|on all processes|but the processes differ|has ended",
    "training.team": "differing|samples first|one item for each sample",  # tests/training/test_team.py
    "surgery.apply": "`plan` must be a Plan",  # as hp.verify says
    "surgery.verify": "must equal the masked|must cost what|must run on the example|must return tensors with numbers",
    "curvature.room": "must hold statistics for which",  # a full disk: tests/curvature/test_room.py
    "curvature.precision": "curvature must be finite",
    # Worded by a row above, or too long to provoke here.
    "deploy.export": "must have an ONNX counterpart|must run a batch|_no_kernels",
    "methods.scoring": "must depend on a group at least|where fully_shard spreads the model",
    "foundation.arrival": "that fully_shard spreads over processes",  # several processes: tests/test_sharded.py
    "curvature.problem": "must be that of a sharded model",
    "bottlenecks.reallocate": "must leave room",
    "objectives.any_loss": "must depend on the model's outputs",
    "objectives.outputs": "with an axis of samples",
    "planning.steps": "out_of_reach",
    "planning.composition": "has other slices there",
    "lab.compare": "must be reachable by one method",
    "quantize.choice": "",
    "training.finetune": "validation loss must be finite",
}
"""For modules, or pieces of messages in them: errors whose remedy no row carries out."""
