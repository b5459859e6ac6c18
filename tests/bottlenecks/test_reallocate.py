"""Reallocation: equal cost, other widths, one plan that goes through a folder."""

import re
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.bottlenecks.widths import narrowest_within
from hessprune.costs.model import CostModel
from tests.bottlenecks.test_find import trained

reallocating = sys.modules[hp.reallocate.__module__]


@pytest.mark.parametrize("budget", [hp.Budget(params=1.0), hp.Budget(macs=1.0), hp.Budget(params=0.8)])
def test_cost_moves_from_wide_groups_to_narrow_ones(budget: hp.Budget) -> None:
    net, batches = trained((5, 32, 32))
    result = hp.reallocate(net, batches[0][0][:1], batches, budget=budget, moved=0.3)
    before, after = (getattr(cost, budget.quantity) for cost in (result.cost_before, result.cost_after))
    assert 0.9 * budget.limit(before) <= after <= budget.limit(before)
    assert result.model[0].out_features > 5
    assert result.bottlenecks[0].group == "0"
    assert [type(step).__name__ for step in result.plan.steps] == ["Plan", "Widening"]
    assert result.cost_after == hp.cost(result.model, batches[0][0][:1])


def test_a_reallocated_model_goes_through_a_folder(tmp_path) -> None:
    net, batches = trained((5, 32, 32))
    result = hp.reallocate(net, batches[0][0][:1], batches)
    again = hp.load(result.save(tmp_path), lambda: trained((5, 32, 32))[0])
    assert torch.equal(again(batches[0][0]), result.model.eval()(batches[0][0]))


def test_new_units_start_as_asked() -> None:
    net, batches = trained((5, 32, 32))
    call = partial(hp.reallocate, net, batches[0][0][:1], batches, moved=0.3, method="magnitude")
    for start in ("split", "fresh"):
        result = call(start=start)
        widening = result.plan.steps[1]
        name, added = next(iter(widening.added.items()))
        read = result.model[int(name) + 2].weight[:, list(added)]
        assert widening.provenance["start"] == start
        assert bool((read == 0).all()) == (start == "fresh")


def test_widths_come_in_multiples() -> None:
    net, batches = trained((8, 32, 32))
    ranking = hp.Ranking(round_to=8)
    result = hp.reallocate(net, batches[0][0][:1], batches, ranking=ranking, moved=0.4)
    assert all(layer.out_features % 8 == 0 for layer in result.model[:-1] if isinstance(layer, torch.nn.Linear))


def test_models_that_are_mostly_frozen_are_reallocated() -> None:
    """Of a table of 60 outputs little can go: only low levels are within reach."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(30, 8), torch.nn.ReLU(), torch.nn.Linear(8, 60), torch.nn.ReLU())
    x = torch.randn(40, 30)
    result = hp.reallocate(net, x[:1], [x], moved=0.1)
    assert result.cost_after.params <= result.cost_before.params


def test_other_budgets_are_refused() -> None:
    net, batches = trained((8,))
    with pytest.raises(hp.errors.ArgumentError, match="`budget` must bound macs or params"):
        hp.reallocate(net, batches[0][0][:1], batches, budget=hp.Budget(units=0.5))
    with pytest.raises(hp.errors.BudgetError, match="`budget` must be"):
        hp.reallocate(net, batches[0][0][:1], batches, budget=0.5)


FLOORS = {"half": hp.Ranking(min_kept_fraction=0.5), "all": hp.Ranking(min_kept_fraction=1.0)}
BEYOND = {
    "a small budget": ("half", {"budget": hp.Budget(params=0.3)}, r"Pass budget=hp.Budget\(params=[\d.]+\)\."),
    "much that moves": ("half", {"moved": 0.9}, r"of 1,415\. Pass moved=[\d.]+\."),
    "more that moves": (
        "half",
        {"moved": 0.9, "budget": hp.Budget(macs=0.5)},
        r"Pass moved=[\d.]+, budget=hp.Budget\(macs=1.0\)\.",
    ),
    "a frozen model": ("all", {}, r"Let hp.widen\(model, example_inputs, widths\) grow it"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_the_pruning_cannot_take_is_refused_in_the_words_of_the_call(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor, settings, says = BEYOND[name]
    net, batches = trained((5, 32, 32))
    call = partial(hp.reallocate, net, batches[0][0][:1], batches, ranking=FLOORS[floor], method="magnitude")
    with monkeypatch.context() as patch:
        patch.setattr(reallocating, "find_bottlenecks", lambda *_, **__: pytest.fail("the long work has begun"))
        with pytest.raises(hp.errors.BudgetError, match=says) as caught:
            call(**settings)
    moved = re.search(r"Pass moved=(\d\.\d+)", str(caught.value))
    budget = re.search(r"budget=hp.Budget\((\w+)=(\d\.\d+)\)", str(caught.value))
    advised = {"moved": float(moved[1])} if moved else {}
    advised |= {"budget": hp.Budget(**{budget[1]: float(budget[2])})} if budget else {}
    if advised:
        assert call(**settings | advised).plan.steps[0].num_removed


def test_a_larger_budget_lets_the_model_grow() -> None:
    net, batches = trained((5, 32, 32))
    result = hp.reallocate(net, batches[0][0][:1], batches, budget=hp.Budget(params=3000), moved=0.3)
    assert result.cost_before.params < 0.9 * 3000 <= result.cost_after.params <= 3000
    pruned = result.plan.steps[0].kept_fraction("params")
    assert 0.6 <= pruned <= 0.7
    widths = {group.name: group.num_units for group in hp.find_groups(net, batches[0][0][:1])}
    assert all(width <= 4 * widths[name] for name, width in result.plan.steps[1].widths.items())


@pytest.mark.parametrize("params", [6000, 16000])
def test_a_large_budget_is_spent_up_to_four_times_the_widths_that_came(params: int) -> None:
    net, batches = trained((5, 32, 32))
    x = batches[0][0][:1]
    result = hp.reallocate(net, x, batches, budget=hp.Budget(params=params), moved=0.3, method="magnitude")
    assert 0.9 * params <= result.cost_after.params <= params
    widths = {group.name: group.num_units for group in hp.find_groups(net, x)}
    assert all(group.num_units <= 4 * widths[group.name] for group in hp.find_groups(result.model, x))


def test_a_budget_that_no_widths_cost_is_refused() -> None:
    net, batches = trained((5, 32, 32))
    call = partial(hp.reallocate, net, batches[0][0][:1], batches, method="magnitude")
    with pytest.raises(hp.errors.BudgetError, match=r"at most params = 19,856, .*hp.Budget\(params=\d+\)") as caught:
        call(budget=hp.Budget(params=10**12))
    most = int(str(caught.value).rpartition("=")[2].rstrip(")."))
    assert call(budget=hp.Budget(params=most)).cost_after.params == most


class Tied(nn.Module):
    """An embedding that is the head, too: one unit more of it changes both uses of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(x + self.down(self.up(x).relu()))


def test_channels_of_tied_embeddings_stay_and_are_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(0, 30, (6, 7))

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), targets.flatten())

    result = hp.reallocate(model, ids, [(ids, ids)] * 3, loss_fn=loss)
    assert "cannot be spent" not in caplog.text
    assert result.cost_after.params <= result.cost_before.params
    assert result.plan.steps[1].added.keys() == {"up"}
    hp.reallocate(model, ids, [(ids, ids)] * 3, loss_fn=loss, budget=hp.Budget(params=10_000))
    assert "all groups that can grow have 4 times their width; more cannot be spent" in caplog.text
    with pytest.raises(hp.errors.VerificationError, match="Leave 'embedding' out of `widths`"):
        hp.widen(model, ids, {"embedding": 20, "up": 30})


@pytest.mark.parametrize(
    "options",
    [{"start": "zero"}, {"ranking": hp.Ranking(step=0.1)}, {"ranking": hp.Ranking(units=("neurons", "qk"))}],
)
def test_what_cannot_be_is_said_before_the_loss_is_called(options) -> None:
    net, batches = trained((8, 8))
    seen: list[int] = []

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        return nn.functional.cross_entropy(output, targets)

    with pytest.raises(hp.errors.ArgumentError):
        hp.reallocate(net, batches[0][0][:1], batches, loss_fn=loss, **options)
    assert not seen


def test_a_lone_group_gets_back_what_it_gives_with_a_warning(caplog) -> None:
    net, batches = trained((24,))
    result = hp.reallocate(net, batches[0][0][:1], batches)
    assert result.model[0].out_features <= 24
    assert "gets back what it gives" in caplog.text


def test_where_nothing_of_the_narrowest_fits_the_next_group_grows() -> None:
    """A unit of the first costs 1 001 parameters, one of the second 4."""
    net = nn.Sequential(nn.Linear(500, 4), nn.ReLU(), nn.Linear(4, 500), nn.ReLU(), nn.Linear(500, 2))
    costs = CostModel(net, torch.zeros(1, 500), hp.find_groups(net, torch.zeros(1, 500)))
    budget = hp.Budget(params=int(costs.spent("params")) + 100)
    widths = narrowest_within(costs, {"0": 4, "2": 500}, 1, budget)
    assert widths["0"] == 4
    assert widths["2"] > 500


@pytest.mark.parametrize("method", ["sosp-h", "joint"])
def test_the_bottlenecks_are_those_that_find_bottlenecks_finds(method: str) -> None:
    net, batches = trained((5, 24, 24))
    moved = hp.reallocate(net, batches[0][0][:1], batches, method=method, moved=0.2)
    found = hp.find_bottlenecks(net, batches[0][0][:1], batches, method=method, levels=(0.2, 0.6))
    assert moved.bottlenecks == found
