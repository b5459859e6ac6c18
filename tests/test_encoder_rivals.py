"""The rivals of `benchmarks/encoders.py` compute their formulas: each against a slow twin in float64."""

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
rivals = importlib.import_module("support.encoder_rivals")
gates = importlib.import_module("support.encoder_rivals.setting")
michel = importlib.import_module("support.encoder_rivals.michel")
kwon = importlib.import_module("support.encoder_rivals.kwon")
kprune = importlib.import_module("support.encoder_rivals.kprune")
osscar = importlib.import_module("support.encoder_rivals.osscar")
variance = importlib.import_module("support.encoder_rivals.variance")
designs = importlib.import_module("support.encoder_designs")
study = importlib.import_module("support.encoder_study")
stream = importlib.import_module("support.encoder_rivals.stream")
squares = importlib.import_module("support.encoder_rivals.least_squares")

WIDTH, HEADS, NEURONS = 12, 3, 5


class Block(nn.Module):
    """Attention and a feed-forward pair, each with a layer norm behind the residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], -1, WIDTH // HEADS).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm(self.o(y) + x)
        return self.last(self.down(F.gelu(self.up(x))) + x)


class Encoder(nn.Module):
    """Two blocks, read at the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, 0])


def behind(reader: str) -> str:
    return reader.replace(".o", ".norm").replace(".down", ".last")


def setting(model: nn.Module, batches: Any, kinds: tuple[str, ...], share: float, quantity: str = "macs") -> Any:
    groups = [g for g in hp.find_groups(model, batches[0][0]) if g.kind in kinds]
    return rivals.setting(model, groups, batches, share=share, quantity=quantity, example=batches[0][0], totals=behind)


@pytest.fixture(scope="module")
def case() -> Any:
    torch.manual_seed(0)
    model = Encoder().double().eval().requires_grad_(False)
    batches = [({"x": torch.randn(6, 4, WIDTH, dtype=torch.float64)}, torch.arange(6) % 2) for _ in range(4)]
    return setting(model, batches, ("heads", "neurons"), 0.5)


def seen(case: Any, sublayer: Any, kept: Any = None) -> Any:
    """Yield what a stream does, from whole passes."""
    reader, norm = case.reader(sublayer), case.model.get_submodule(sublayer.total)
    for number in range(len(case.batches)):
        heard: dict[str, Tensor] = {}
        hooks = [
            reader.register_forward_hook(lambda _, args, out, heard=heard: heard.update(x=args[0], y=out)),
            norm.register_forward_pre_hook(lambda _, args, heard=heard: heard.update(sum=args[0])),
        ]
        with gates.gated(case, kept or {}):
            case.logits(case.batches[number][0])
        for hook in hooks:
            hook.remove()
        x, y, total = (heard[key].flatten(0, -2) for key in ("x", "y", "sum"))
        yield x, total, total - y


def whole(case: Any) -> dict[str, Tensor]:
    return {s.name: torch.ones(s.units, dtype=torch.bool) for s in case.sublayers}


def logits(case: Any, number: int, name: str, unit: int, change: float) -> Tensor:
    """Return the logits of a batch with one gate moved away from 1."""
    moved = {key: mask.double() for key, mask in whole(case).items()}
    moved[name][unit] += change
    with gates.gated(case, moved):
        return case.logits(case.batches[number][0])


def test_sublayers_come_in_forward_order_with_the_cost_of_a_unit(case: Any) -> None:
    assert [s.reader for s in case.sublayers] == ["blocks.0.o", "blocks.0.down", "blocks.1.o", "blocks.1.down"]
    assert [s.cost for s in case.sublayers[:2]] == [6 * (4 * 4 * WIDTH * 4 + 2 * 16 * 4), 6 * 4 * 2 * WIDTH]


@pytest.mark.parametrize("name", ["michel", "kwon", "k-prune", "osscar"])
def test_rivals_meet_a_budget_of_macs(case: Any, name: str) -> None:
    pruned = rivals.RIVALS[name](case)
    assert 0.3 < hp.cost(pruned, case.example).macs / hp.cost(case.model, case.example).macs <= 0.5
    assert torch.isfinite(pruned(**case.batches[0][0])).all()


@pytest.mark.parametrize("name", ["vbp", "dvbp+ob2c", "corp"])
def test_rivals_for_neurons_meet_a_budget_of_units(case: Any, name: str) -> None:
    pruned = rivals.RIVALS[name](setting(case.model, case.batches, ("neurons",), 0.6, "units"))
    assert sum(block.down.in_features for block in pruned.blocks) == 6
    assert [block.o.in_features for block in pruned.blocks] == [WIDTH, WIDTH]


def test_michel_is_the_mean_of_absolute_sensitivities(case: Any) -> None:
    scores, step = michel.scores(case), 1e-5
    for s in case.sublayers[:2]:
        slow = torch.zeros(s.units, dtype=torch.float64)
        for unit, number in itertools.product(range(s.units), range(4)):
            up, down = (
                logits(case, number, s.name, unit, sign * step)
                .log_softmax(1)
                .gather(1, case.batches[number][1][:, None])
                for sign in (1, -1)
            )
            slow[unit] += ((up - down) / (2 * step)).abs().sum()
        assert torch.allclose(scores[s.name].double(), slow / slow.norm(), rtol=1e-4)


def test_kwon_takes_gradients_of_batches_and_finds_the_best_gates(case: Any) -> None:
    gradients = kwon.batch_gradients(case)
    s, step = case.sublayers[2], 1e-5
    losses = [F.cross_entropy(logits(case, 1, s.name, 2, sign * step), case.batches[1][1]) for sign in (1, -1)]
    assert float(gradients[s.name][1, 2]) == pytest.approx(float(losses[0] - losses[1]) / (2 * step), rel=1e-4)
    fisher = {name: g.square().sum(0) for name, g in gradients.items()}
    found = kwon.search(case, fisher, case.excess)
    best = _most_information(case, fisher)
    assert sum(float(fisher[name][mask].sum()) for name, mask in found.items()) == pytest.approx(best)


def _most_information(case: Any, fisher: dict[str, Tensor]) -> float:
    """Return the most information that any allowed set of gates keeps."""
    sizes = [s.units for s in case.sublayers]
    every = (torch.arange(2 ** sum(sizes))[:, None] >> torch.arange(sum(sizes))) % 2 == 1
    values = torch.cat([fisher[s.name] for s in case.sublayers])
    costs = torch.cat([torch.full((s.units,), float(s.cost)) for s in case.sublayers])
    allowed = (~every).float() @ costs >= case.excess
    for part in every.split(sizes, 1):
        allowed &= part.any(1)
    return float((every[allowed].float() @ values).max())


@pytest.mark.parametrize("refitted", [False, True])
def test_a_stream_that_skips_blocks_sees_what_whole_passes_see(case: Any, refitted: bool) -> None:
    kept, weights, flow = whole(case), {}, stream.Stream(case)
    for number, s in enumerate(case.sublayers):
        kept[s.name][number % s.units] = False
        with gates.reweighted(case, weights):
            pairs = list(zip(flow.seen(s, kept), seen(case, s, kept), strict=True))
            assert all(torch.equal(a, b) for found, slow in pairs for a, b in zip(found, slow, strict=True))
            with gates.gated(case, kept):
                assert all(torch.equal(flow.logits(n), case.logits(case.batches[n][0])) for n in range(4))
        if refitted:
            weights[s.reader] = (case.reader(s).weight * 1.1, case.reader(s).bias + 0.1)
    assert flow.position == 1
    assert "forward" not in vars(case.model.blocks[0])


def test_kwon_rearranges_to_a_smaller_block(case: Any) -> None:
    gradients = torch.randn(7, 10, generator=torch.Generator().manual_seed(1)) + 0.5
    kept = torch.arange(10) < 6
    found = kwon.rearrange(kept, gradients)
    sums = [float(gradients[:, ~mask].sum(1).square().sum()) for mask in (kept, found)]
    assert int(found.sum()) == 6
    assert sums[1] < sums[0]
    del case


def test_kwon_scales_are_a_damped_least_squares(case: Any) -> None:
    s, kept = case.sublayers[2], whole(case)
    kept[s.name][0] = False
    goals = [whole_sum + 0.1 for _, whole_sum, _ in seen(case, s)]
    found = kwon.scales(stream.Stream(case), s, kept, goals, [torch.arange(24)] * 4)
    weight, columns, rest = case.reader(s).weight, [], []
    for (x, now, _), goal in zip(seen(case, s, kept), goals, strict=True):
        parts = [x[:, 4 * u : 4 * u + 4] @ weight[:, 4 * u : 4 * u + 4].T for u in (1, 2)]
        columns.append(torch.stack([part.flatten() for part in parts], 1))
        rest.append((goal - now).flatten())
    left = torch.cat([*columns, torch.eye(2, dtype=torch.float64)])
    slow = torch.linalg.lstsq(left, torch.cat([*rest, torch.zeros(2, dtype=torch.float64)])[:, None]).solution.flatten()
    assert torch.allclose(found[1:].double(), 1 + slow, atol=1e-6)
    assert found[0] == 1


def test_kprune_takes_the_curvature_of_the_divergence(case: Any) -> None:
    scores, step, s = kprune.predictive(stream.Stream(case), whole(case), 1), 1e-3, case.sublayers[1]
    assert case.sublayers[0].name not in scores
    for unit in range(2):
        slow = 0.0
        for number in range(4):
            soft = (kprune.dense_logits(case)[number] / 2).log_softmax(1)
            for sign in (1, -1):
                moved = (logits(case, number, s.name, unit, sign * step) / 2).log_softmax(1)
                slow += float((soft.exp() * (soft - moved)).sum()) / step**2 / case.samples
        assert float(scores[s.name][unit]) == pytest.approx(slow, rel=1e-3)


def test_kprune_refits_to_the_sum_of_the_dense_model(case: Any) -> None:
    s, kept = case.sublayers[3], whole(case)
    kept[s.name][:3] = False
    kept[case.sublayers[0].name][1] = False
    dense = [total for _, total, _ in seen(case, s)]
    weight, bias = squares.to_dense_sum(stream.Stream(case), s, kept, dense, damping=0.0)
    pieces = list(seen(case, s, kept))
    x = torch.cat([x[:, 3:] for x, _, _ in pieces])
    goal = torch.cat([total - residual for total, (_, _, residual) in zip(dense, pieces, strict=True)])
    slow = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), goal).solution
    assert torch.allclose(weight[:, 3:].double(), slow[:-1].T, atol=1e-4)
    assert torch.allclose(bias.double(), slow[-1], atol=1e-4)
    assert not weight[:, :3].any()


def test_osscar_knows_what_units_cost_and_gain() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 12, dtype=torch.float64) @ torch.randn(12, 12).double(), torch.randn(12, 4).double()
    layer, kept, gone = osscar.Layer(x.T @ x, weight, 2), torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])
    now, solution = layer.value(kept), layer.solve(kept)
    less = [layer.value(kept[kept != unit]) - now for unit in kept]
    more = [now - layer.value(torch.cat([kept, unit[None]]).sort().values) for unit in gone]
    assert torch.allclose(layer.losses(*solution), torch.tensor(less, dtype=torch.float64))
    assert torch.allclose(layer.gains(kept, gone, *solution), torch.tensor(more, dtype=torch.float64))
    supports = [torch.tensor(units) for units in itertools.combinations(range(6), 3)]
    greedy = osscar.eliminate(layer, 3)
    assert min(map(layer.value, supports)) <= layer.value(osscar.swapped(layer, greedy)) <= layer.value(greedy)


def test_variance_pruning_keeps_the_mean_output_and_refits_the_rest(case: Any) -> None:
    s = case.sublayers[1]
    x = torch.cat([x for x, _, _ in seen(case, s)])
    mean, covariance = squares.spread(stream.Stream(case), s)
    assert torch.allclose(covariance, torch.cov(x.T, correction=0), atol=1e-7)
    assert torch.allclose(mean, x.mean(0))
    kept, weight = torch.tensor([True, False, True, True, False]), case.reader(s).weight
    goal = (x - mean) @ weight.T
    slow = torch.linalg.lstsq((x - mean)[:, kept], goal).solution.T
    assert torch.allclose(variance.bayes(covariance, weight, kept)[:, kept], slow, rtol=1e-2, atol=1e-3)


def test_the_marchenko_pastur_part_drops_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 40, generator=generator, dtype=torch.float64)
    spike = 5 * torch.randn(400, 1, generator=generator, dtype=torch.float64) * (torch.arange(40) < 4)
    quiet, loud = (variance.spiked(torch.cov(x.T), 400) for x in (noise, noise + spike))
    assert quiet.sum() < 0.2 * 40
    assert loud[:4].min() > 10 * loud[4:].max()


def test_a_study_measures_each_cell_once(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the file is not measured again; every new cell is saved before the next one."""
    wanted, saved, asked = list(designs.SENTENCES.cells(range(2), 1)), [], []
    assert len(wanted) == len(set(wanted))
    assert {method for _, kind, _, method in wanted if kind == "heads"} >= {"michel", "kwon", "k-prune", "osscar"}

    def pruned(draw: Any, method: str, kind: str, share: float) -> nn.Module:
        asked.append((draw.number, kind, share, method))
        return case.model

    monkeypatch.setattr(study.Draw, "pruned", pruned)
    given = study.Study(
        design=designs.SENTENCES,
        model=case.model,
        example=case.example,
        calibration=lambda draw: draw,
        judge=lambda _: (0.5, 1.0),
        tune=lambda model: model,
        behind=behind,
    )
    rows: list[dict[str, Any]] = []
    study.measure(given, rows, wanted[:3], lambda: saved.append(len(rows)))
    study.measure(given, rows, wanted[:5], lambda: saved.append(len(rows)))
    assert asked == wanted[:5]
    assert saved == [1, 2, 3, 4, 5]
    assert study.mean(rows, wanted[0][3], *wanted[0][1:3]) == 50
    assert study.mean(rows, "unheard of", "both", 0.5) is None
