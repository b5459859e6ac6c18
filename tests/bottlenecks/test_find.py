"""Bottlenecks: narrowed layers are named first, values go through JSON, wrong input is one line."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp


def trained(widths: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Train a perceptron on a function that needs width, in a second."""
    torch.manual_seed(seed)
    sizes = (6, *widths)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    net, x = nn.Sequential(*layers, nn.Linear(widths[-1], 4)), torch.randn(512, 6)
    y = (torch.randn(6, 4).T @ x.sin().T + torch.randn(6, 4).T @ (2 * x).cos().T).argmax(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, [(x, y)]


@pytest.mark.parametrize("place", [0, 1])
def test_a_narrowed_layer_is_named_first(place: int) -> None:
    widths = [24, 24, 24]
    widths[place] = 5
    net, batches = trained(tuple(widths))
    found = hp.find_bottlenecks(net, batches[0][0][:1], batches, method="joint")
    assert found[0].group == str(2 * place)
    assert found[0].verdict == "bottleneck"
    assert found.narrow[0] == found[0]
    assert [item.relative for item in found] == sorted(item.relative for item in found)
    assert all(item.gain is not None and item.gain > 0 for item in found)


def test_a_group_is_no_bottleneck_for_its_floor() -> None:
    net, batches = trained((12, 12, 12))
    plain = {item.group: item for item in find(net, batches, hp.Ranking(min_kept_fraction=0.0))}
    floors = hp.Ranking(min_kept_units=(("0", 10), ("2", 12)), min_kept_fraction=0.0)
    kept = {item.group: item for item in find(net, batches, floors)}
    assert plain["0"].verdict == "balanced"
    assert kept["0"].verdict != "bottleneck"
    assert kept["0"].removed[0.3] <= 2 / 12
    assert kept["2"].relative == 1.0
    assert kept["2"].removed[0.3] == 0.0


def find(net: nn.Module, batches: list[tuple[Tensor, Tensor]], ranking: hp.Ranking) -> hp.Bottlenecks:
    return hp.find_bottlenecks(
        net, batches[0][0][:1], batches, levels=(0.3, 0.3), method="random", draws=6, ranking=ranking
    )


def test_values_go_through_json_and_print_in_five_lines() -> None:
    net, batches = trained((8, 8))
    found = hp.find_bottlenecks(net, batches[0][0][:1], batches, levels=(0.4,), method="magnitude", draws=2)
    assert hp.Bottlenecks.from_json(found.to_json()) == found
    assert hp.Bottlenecks.from_json(found.to_json()).facts == found.facts
    assert len(str(found).splitlines()) <= 5
    assert found[0].group in found.table()
    assert set(found.blocks()) == {"0", "2"}
    with pytest.raises(hp.errors.CheckpointError, match="complete JSON"):
        hp.Bottlenecks.from_json(found.to_json()[:80])


def test_the_plot_shows_every_group() -> None:
    pytest.importorskip("matplotlib")
    net, batches = trained((8, 8))
    found = hp.find_bottlenecks(net, batches[0][0][:1], batches, levels=(0.4,), method="magnitude", draws=1)
    labels = [label.get_text() for label in found.plot().axes[0].get_yticklabels()]
    assert labels == ["0", "2"]


def test_without_labels_shares_are_found_and_gains_are_not() -> None:
    net, batches = trained((8, 8))
    found = hp.find_bottlenecks(net, batches[0][0][:1], [batches[0][0]], levels=(0.4,), draws=1)
    assert all(item.gain is None for item in found)
    assert all(math.isfinite(item.relative) for item in found)


WRONG = {
    "a level of 1": ({"levels": (1.0,)}, "`levels` must be"),
    "levels as text": ({"levels": "0.5"}, "`levels` must be removed shares"),
    "no draws": ({"draws": 0}, "`draws` must be"),
    "milliseconds": ({"quantity": "latency_ms"}, "`quantity` must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name: str) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(8, 4)
    options, message = WRONG[name]
    with pytest.raises(hp.errors.ArgumentError, match=message):
        hp.find_bottlenecks(net, x, [x], **options)


def test_levels_out_of_reach_are_left_out_and_named() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(8, 4)
    found = hp.find_bottlenecks(net, x, [x], levels=(0.5, 0.98), method="magnitude")
    assert [*found[0].removed] == [0.5]
    assert found.facts["out_of_reach"] == [0.98]
    assert "out of reach: 98%" in str(found)
    with pytest.raises(hp.errors.BudgetError, match=r"`levels` must hold one within reach, got \(0.98,\)"):
        hp.find_bottlenecks(net, x, [x], levels=(0.98,), method="magnitude")


def test_a_loss_of_ones_own_gives_the_gains_of_the_built_in_one() -> None:
    net, batches = trained((8, 8))
    x, own = batches[0][0][:1], lambda output, targets: F.cross_entropy(output, targets)
    ours, theirs = (hp.find_bottlenecks(net, x, batches, method="magnitude", loss_fn=f) for f in (own, F.cross_entropy))
    assert [item.gain for item in ours] == pytest.approx([item.gain for item in theirs], rel=1e-4)


def test_ignored_layers_have_no_group() -> None:
    net, batches = trained((8, 8))
    ranking = hp.Ranking(ignore=("0",))
    found = hp.find_bottlenecks(net, batches[0][0][:1], batches, levels=(0.2,), method="magnitude", ranking=ranking)
    assert [item.group for item in found] == ["2"]


def test_more_draws_than_samples_are_refused() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    with pytest.raises(hp.errors.ArgumentError, match="`draws` must be at most the number of samples, 2, got 3"):
        hp.find_bottlenecks(net, x, [x])


def test_criteria_of_sosp_are_as_published_and_others_follow_their_habit() -> None:
    """Without division by cost, unless a ranking says otherwise."""
    net, batches = trained((24, 5, 24))

    def shares(method: str, **settings: bool) -> list[float]:
        ranking = hp.Ranking(min_kept_fraction=0.0, **settings) if settings else None
        return [item.relative for item in hp.find_bottlenecks(net, X, batches, method=method, ranking=ranking)]

    assert shares("sosp-h") == shares("sosp-h", per_cost=False) != shares("sosp-h", per_cost=True)
    assert shares("joint") == shares("joint", per_cost=True) != shares("joint", per_cost=False)


X = torch.zeros(1, 6)
