"""The rivals of `benchmarks/decoders.py` compute their formulas: each against a slow twin in float64."""

import copy
import importlib
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
rivals = importlib.import_module("support.decoder_rivals")
given_by = importlib.import_module("support.decoder_rivals.setting")
flap = importlib.import_module("support.decoder_rivals.flap")
wanda = importlib.import_module("support.decoder_rivals.wanda")
llm_pruner = importlib.import_module("support.decoder_rivals.llm_pruner")
minitron = importlib.import_module("support.decoder_rivals.minitron")
magnitude = importlib.import_module("support.decoder_rivals.magnitude")
osscar = importlib.import_module("support.decoder_rivals.osscar")
study = importlib.import_module("support.decoder_study")

WIDTH, HEADS, NEURONS, VOCABULARY, LENGTH = 12, 3, 20, 11, 7


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], -1, WIDTH // HEADS).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Neurons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, NEURONS, bias=False), nn.Linear(NEURONS, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.neurons = Attention(), Neurons()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states + self.attention(self.first(hidden_states))
        return x + self.neurons(self.second(x))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(VOCABULARY, WIDTH), nn.ModuleList([Block(), Block()])

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder(nn.Module):
    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        return self.head(self.body(input_ids))


@pytest.fixture(scope="module")
def case() -> Any:
    torch.manual_seed(0)
    model = Decoder().double().eval().requires_grad_(False)
    ids = torch.randint(0, VOCABULARY, (10, LENGTH))
    groups = [g for g in hp.find_groups(model, {"input_ids": ids[:1]}) if g.kind in ("heads", "neurons")]
    return rivals.setting(model, groups, ids, share=0.5)


def inputs(case: Any, reader: str) -> Tensor:
    """Return all rows that a reader sees, `(N, T, K)`."""
    rows: list[Tensor] = []
    with given_by.listening(case.model.get_submodule(reader), rows.append):
        case.model(case.tokens.ids)
    return rows[0]


def test_sublayers_come_in_forward_order_with_the_parameters_of_a_unit(case: Any) -> None:
    readers = [f"body.layers.{n}.{name}" for n in (0, 1) for name in ("attention.o_proj", "neurons.down")]
    assert [s.reader for s in case.sublayers] == readers
    assert [s.cost for s in case.sublayers[:2]] == [4 * 4 * WIDTH, 2 * WIDTH]
    assert case.total == 2 * (4 * WIDTH * WIDTH + 2 * NEURONS * WIDTH)


@pytest.mark.parametrize("name", list(rivals.RIVALS))
def test_rivals_remove_the_share_that_is_asked_for(case: Any, name: str) -> None:
    pruned = rivals.RIVALS[name](case)
    dense, left = (hp.cost(each, case.example).params for each in (case.model, pruned))
    added = sum(p.numel() for key, p in pruned.named_parameters() if key.endswith(("o_proj.bias", "down.bias")))
    gone = (dense - left + added) / case.total
    assert 0.5 <= gone < 0.5 + 4 * 4 * WIDTH / case.total
    assert torch.isfinite(pruned(case.tokens.ids)).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in case.model.parameters())


def test_whole_heads_below_the_share_leave_and_neurons_take_the_rest(case: Any) -> None:
    gone = given_by.uniform(case.losing(0.5))
    heads = [gone[s.name] for s in case.sublayers if s.is_attention]
    assert heads == [1, 1]  # half of three
    assert sum(gone[s.name] * s.cost for s in case.sublayers) >= case.losing(0.5).excess
    assert max(gone.values()) - min(n for n in gone.values() if n > 1) <= 1


def test_sums_are_those_of_all_rows(case: Any) -> None:
    for s in case.sublayers:
        rows, sums = inputs(case, s.reader), case.tokens.sums[s.reader]
        flat = rows.flatten(0, 1)
        assert torch.allclose(sums.xx, flat.T @ flat)
        assert torch.allclose(sums.mean, flat.mean(0))
        assert torch.allclose(sums.variance, flat.var(0, correction=0))
        assert torch.allclose(sums.bounds, rows.abs().mean(1))


def test_flap_standardises_fluctuation_and_keeps_the_mean_output(case: Any) -> None:
    found = flap.scores(case)
    for s in case.sublayers:
        rows, weight = inputs(case, s.reader).flatten(0, 1), case.weight(s)
        slow = torch.stack([rows[:, j].var(correction=0) * (weight[:, j] ** 2).sum() for j in range(len(weight.T))])
        slow = (slow - slow.mean()) / slow.std()
        for unit in range(s.units):
            mine = slow[unit * s.width : (unit + 1) * s.width].mean()
            assert float(found[s.name][unit]) == pytest.approx(float(mine))
    pruned, last = flap.flap(case), case.sublayers[0].reader
    before, after = case.model.get_submodule(last), pruned.get_submodule(last)
    rows = inputs(case, last).flatten(0, 1)
    kept = [n for n in range(WIDTH) if any(torch.equal(before.weight[:, n], column) for column in after.weight.T)]
    assert torch.allclose(before(rows).mean(0), after(rows[:, kept]).mean(0))


def test_wanda_weighs_by_norms_of_inputs(case: Any) -> None:
    found = wanda.scores(case)
    for s in case.sublayers:
        rows, weight = inputs(case, s.reader).flatten(0, 1), case.weight(s)
        for unit in range(s.units):
            slow = 0.0
            for j in range(unit * s.width, (unit + 1) * s.width):
                slow += float(weight[:, j].abs().mean() * rows[:, j].square().mean().sqrt())
            assert float(found[s.name][unit]) == pytest.approx(slow)


def test_minitron_takes_sizes_of_activations(case: Any) -> None:
    found = minitron.scores(case)
    for s in case.sublayers:
        rows = inputs(case, s.reader)
        for unit in range(s.units):
            block = rows[:, :, unit * s.width : (unit + 1) * s.width]
            slow = math.sqrt(sum(float(sample[:, j].abs().mean()) ** 2 for sample in block for j in range(s.width)))
            assert float(found[s.name][unit]) == pytest.approx(slow)


def owned(model: nn.Module, block: int, kind: str, unit: int) -> list[tuple[str, Tensor]]:
    """Return a unit's weights by name, as masks of the parameters."""
    prefix, names = f"body.layers.{block}.", ("q", "k", "v") if kind == "heads" else ("up",)
    size, path = (WIDTH // HEADS, "attention.") if kind == "heads" else (1, "neurons.")
    where, found = slice(unit * size, (unit + 1) * size), []
    for name in (*names, "o_proj" if kind == "heads" else "down"):
        weight = model.get_parameter(f"{prefix}{path}{name}.weight")
        mask = torch.zeros_like(weight)
        mask[(slice(None), where) if name in ("o_proj", "down") else where] = 1
        found.append((f"{prefix}{path}{name}.weight", mask))
    return found


def test_llm_pruner_adds_up_the_expansion_of_each_weight(case: Any) -> None:
    model = copy.deepcopy(case.model).requires_grad_(True)
    means, squares = {}, {}
    for ids in case.tokens.ids:
        model.zero_grad()
        F.cross_entropy(model(ids[None])[0, :-1], ids[1:]).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                means[name] = means.get(name, 0) + parameter.grad / len(case.tokens.ids)
                squares[name] = squares.get(name, 0) + parameter.grad**2 / len(case.tokens.ids)
    found = llm_pruner.scores(case)
    for (block, kind), s in zip(itertools.product((0, 1), ("heads", "neurons")), case.sublayers, strict=True):
        for unit in range(s.units):
            slow = 0.0
            for name, mask in owned(model, block, kind, unit):
                weight = model.get_parameter(name).detach()
                slow += float(((weight * means[name] - weight**2 * squares[name] / 2).abs() * mask).sum())
            assert float(found[s.name][unit]) == pytest.approx(slow)


def test_llm_pruner_leaves_the_first_and_the_last_blocks(case: Any) -> None:
    assert len(llm_pruner.inner(case)) == 4  # two blocks in all: nothing would be left
    many = [SimpleSublayer(f"body.layers.{n}.o") for n in range(10)]
    chosen = llm_pruner.inner(case.__class__(**{**vars(case), "sublayers": many}))
    assert [s.reader for s in chosen] == [f"body.layers.{n}.o" for n in range(4, 8)]


@dataclass
class SimpleSublayer:
    reader: str


def test_magnitude_is_the_norm_of_all_weights_of_a_unit(case: Any) -> None:
    found = magnitude.scores(case)
    for (block, kind), s in zip(itertools.product((0, 1), ("heads", "neurons")), case.sublayers, strict=True):
        for unit in range(s.units):
            owns = owned(case.model, block, kind, unit)
            slow = sum(float((case.model.get_parameter(name) * mask).square().sum()) for name, mask in owns)
            assert float(found[s.name][unit]) == pytest.approx(slow)


def test_osscar_fits_each_layer_to_what_it_did_on_the_inputs_of_the_pruned_prefix(case: Any) -> None:
    half = case.losing(0.3)
    pruned, last = osscar.osscar(half), half.sublayers[-1]
    layer, old = pruned.get_submodule(last.reader), case.weight(last)
    rows: list[Tensor] = []
    with given_by.listening(layer, rows.append):
        pruned(case.tokens.ids)
    x = rows[0].flatten(0, 1)
    up, dense = pruned.body.layers[1].neurons.up.weight, case.model.body.layers[1].neurons.up.weight
    kept = [n for n in range(NEURONS) if any(torch.equal(dense[n], row) for row in up)]
    whole = F.gelu(F.linear(hidden(pruned, case.tokens.ids), dense)).flatten(0, 1)
    assert torch.allclose(whole[:, kept], x)
    gram = whole.T @ whole / len(whole)
    gram += (
        importlib.import_module("support.encoder_rivals.osscar").DAMPING
        * gram.diagonal().mean()
        * torch.eye(NEURONS, dtype=gram.dtype)
    )
    slow = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ old.T).T
    assert torch.allclose(layer.weight, slow, atol=1e-6)  # weights travel in single precision


def hidden(model: nn.Module, ids: Tensor) -> Tensor:
    """Return what the last neurons read."""
    rows: list[Tensor] = []
    with given_by.listening(model.body.layers[1].neurons.up, rows.append):
        model(ids)
    return rows[0]


def test_cells_that_tell_most_come_first() -> None:
    order = list(study.cells(2))
    distilled = [cell for cell in order if cell[3]]
    assert len(order) - len(distilled) == 2 * 4 * len(study.METHODS)
    assert len(set(order)) == len(order)
    assert order[:6] == [(0, share, method, 0) for share in (0.2, 0.3) for method in study.FIRST]
    assert {draw for draw, *_ in order[: len(order) // 2 - len(distilled) // 2]} == {0}
    assert order[-len(distilled) :] == distilled
    assert {cell[2] for cell in distilled} == {*study.METHODS}
    assert list(study.cells(0)) == []


def test_cells_are_measured_once_and_kept_one_by_one(case: Any, capsys: Any, monkeypatch: Any) -> None:
    rows: list[dict[str, Any]] = [{"draw": 0, "share": 0.3, "method": "random", "perplexity": 3.0}]
    kept: list[int] = []
    wanted = [(0, 0.3, "random", 0), (0, 0.3, "magnitude", 0), (1, 0.3, study.OURS, 0), (0, 0.3, "flap", 7)]
    tuned: list[int] = []

    def tune(model: nn.Module, steps: int) -> nn.Module:
        tuned.append(steps)
        return model

    whole = study.Study(
        model=case.model,
        calibration=lambda _: case.tokens.ids,
        judge=lambda model: 2.0,
        judge_whole=lambda model: 4.0 if model is case.model else 5.0,
        tune=tune,
    )
    monkeypatch.setattr(study.Draw, "given", case)
    monkeypatch.setattr(study.Draw, "pruned", lambda _, method, share: rivals.RIVALS["random"](case.losing(share)))
    study.measure(whole, rows, wanted, lambda: kept.append(len(rows)))
    assert kept == [2, 3, 4]
    assert [row["method"] for row in rows] == ["random", "magnitude", study.OURS, "flap"]
    assert tuned == [rows[3]["steps"]] == [7]
    assert all(0.3 <= row["gone"] < 0.6 for row in rows[1:])
    assert capsys.readouterr().out.count("\n") == 3
    assert study.mean(rows, "random", 0.3) == 3.0
    assert study.mean(rows, "flap", 0.3) is None
    assert study.mean(rows, "flap", 0.3, 7) == 2.0
    found: dict[str, float] = {}
    study.judge_whole(whole, found, lambda: kept.append(0))
    assert found == {"dense": 4.0, study.OURS: 5.0}
    study.judge_whole(whole, found, lambda: kept.append(0))
    assert kept == [2, 3, 4, 0, 0], "what is known is not judged again"


def test_claims_compare_ours_with_the_lowest_rival(capsys: Any) -> None:
    found = {study.OURS: 24.0, "flap": 30.0, "osscar": 26.0}
    rows = [{"draw": 0, "share": 0.2, "method": method, "perplexity": value} for method, value in found.items()]
    claims = importlib.import_module("support.claims").Claims()
    study.state(claims, rows, 20.0)
    assert [(claim["value"], claim["holds"]) for claim in claims.claims] == [(0.9231, True), (0.4, True)]
    assert claims.claims[0]["peer"] == "osscar 26.0"
    assert "FAILS" not in capsys.readouterr().out
