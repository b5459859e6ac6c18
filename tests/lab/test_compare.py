"""A comparison on the digits, as small as it gets: resumed after a kill, and never measuring twice."""

from dataclasses import replace

import pytest

import hessprune as hp
from hessprune.errors import UnsupportedModelError
from hessprune.foundation.progress import listening
from hessprune.lab import compare as comparing
from hessprune.lab.recipe import parse_recipe
from hessprune.structure.find import find_groups
from tests.cases import Plain, Residual, image, make
from tests.lab.test_run import Killer

RECIPE = parse_recipe({
    "threads": 1,
    "data": {"validation_size": 1000, "calibration_size": 32, "batch_size": 64},
    "model": {"pretrain": {"epochs": 1, "lr": 0.1}},
    "prune": {"budget": {"macs": 0.5}},
    "finetune": {"lr": 0.01},
})


class Counter:
    """Counts what the bar of the comparison promises and does."""

    def __init__(self):
        self.handles, self.total, self.done = 0, None, 0

    def start(self, label, total):
        self.handles += 1
        if label == "comparing":
            self.own, self.total = self.handles, total
        return self.handles

    def advance(self, handle, steps, note):
        self.done += steps if handle == self.own else 0

    def finish(self, handle):
        pass


ASKED = hp.CompareSettings(methods=("random", "joint"), budgets=(0.6, 0.01), seeds=(0, 1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    return out, hp.compare(RECIPE, out, comparison=ASKED)


def test_every_cell_is_there_and_what_is_out_of_reach_is_said(finished):
    out, found = finished
    kinds = {(c.method, c.budget, c.seed, c.compensated) for c in found.cells}
    assert kinds == {(m, 0.6, s, c) for m in ("random", "joint") for s in (0, 1) for c in (False, True)}
    assert all(0.4 < cell.macs <= 0.6 and cell.epochs == 0 for cell in found.cells)
    assert [reason.partition(":")[0] for reason in found.unreachable] == ["random", "joint"]
    assert hp.Comparison.load(out / "comparison.json") == found
    assert {"comparison.html", "comparison.png", "stages"} < {path.name for path in out.iterdir()}
    assert "1,000 validation images" in found.notes[0]
    assert "standard deviation over 2 draws (seeds 0, 1)" in found.notes[1]


def test_draws_differ_and_compensation_helps(finished):
    _, found = finished
    plain, compensated = found.rows(0, False), found.rows(0, True)
    assert len({cell.loss for cell in found.cells}) == len(found.cells)
    assert all(compensated[key].accuracy >= plain[key].accuracy for key in plain)


def test_another_budget_measures_no_saliency_and_repeats_no_cell(finished, monkeypatch):
    out, found = finished
    monkeypatch.setattr("hessprune.pruning.prune.saliency", None)
    more = hp.compare(RECIPE, out, comparison=replace(ASKED, budgets=(0.6, 0.8), compensate=(False,)))
    again = {(cell.method, cell.budget, cell.seed): cell for cell in more.cells}
    assert len(again) == 8
    assert all(again[c.method, c.budget, c.seed] == c for c in found.cells if not c.compensated)


def test_a_killed_comparison_continues_with_the_same_numbers(finished, tmp_path, monkeypatch):
    asked = replace(ASKED, budgets=(0.6,), compensate=(False,))
    expected = [cell for cell in finished[1].cells if not cell.compensated]
    with pytest.raises(KeyboardInterrupt), listening(Killer("comparing", 3)):
        hp.compare(RECIPE, tmp_path, comparison=asked)
    done = len(list((tmp_path / "stages").glob("6-cell-*/cell.json")))
    calls = []
    pruned_by = comparing.pruned_by
    monkeypatch.setattr(comparing, "pruned_by", lambda *arguments: calls.append(1) or pruned_by(*arguments))
    assert list(hp.compare(RECIPE, tmp_path, comparison=asked).cells) == expected
    assert len(calls) == len(expected) - done == 1


def test_fine_tuning_tries_every_rate_and_keeps_the_best_on_validation(finished):
    asked = hp.CompareSettings(methods=("magnitude",), budgets=(0.5,), seeds=(0,), compensate=(True,))
    tuned = hp.compare(RECIPE, finished[0], comparison=replace(asked, epochs=1, lrs=(0.01, 1e-9), split="test"))
    assert [(cell.epochs, cell.lr) for cell in tuned.cells] == [(0, None), (1, 0.01), (1, 1e-9)]
    row = tuned.rows(1, True)["magnitude", 0.5]
    best = max(tuned.cells[1:], key=lambda cell: cell.validation_accuracy)
    assert (row.lr, row.accuracy) == (best.lr, best.accuracy)
    assert "450 test images" in tuned.notes[0]


def test_later_draws_only_use_the_rate_that_won_on_the_first(finished):
    asked = hp.CompareSettings(methods=("magnitude",), budgets=(0.5,), seeds=(0, 1), compensate=(True,))
    counter = Counter()
    with listening(counter):
        tuned = hp.compare(RECIPE, finished[0], comparison=replace(asked, epochs=1, lrs=(0.01, 1e-9), split="test"))
    first = [cell for cell in tuned.cells if cell.seed == 0 and cell.epochs]
    best = max(first, key=lambda cell: cell.validation_accuracy)
    assert [(cell.seed, cell.lr) for cell in tuned.cells[3:]] == [(1, None), (1, best.lr)]
    assert tuned.rows(1, True)["magnitude", 0.5].num_draws == 2
    assert tuned.cells[-1].loss != best.loss  # the same plan, but a training of its own
    assert counter.done == counter.total == len(tuned.cells)


def test_inner_channels_spare_the_residual_stream():
    model, x = make(Residual), image()
    groups = find_groups(model, x)
    inner = comparing.chosen_groups(groups, hp.CompareSettings(channels="inner"))
    assert 0 < len(inner) < len(groups)
    assert all(len(group.slices_with_role("producer")) == 1 for group in inner)
    assert comparing.chosen_groups(groups, hp.CompareSettings()) == groups


def test_a_model_without_inner_channels_is_one_clear_error():
    with pytest.raises(UnsupportedModelError, match="`channels` must be 'all' for this model"):
        comparing.chosen_groups(find_groups(make(Plain), image())[:0], hp.CompareSettings(channels="inner"))


def test_layers_that_the_recipe_ignores_are_ignored(tmp_path):
    ranking = hp.Ranking(ignore=("layer1*",))
    recipe = replace(RECIPE, prune=replace(RECIPE.prune, ranking=ranking))
    asked = hp.CompareSettings(methods=("random",), budgets=(0.9,), seeds=(0,), ignore=("layer2.0.conv1",))
    hp.compare(recipe, tmp_path, comparison=asked)
    plan = next((tmp_path / "stages").glob("3-*/plan.json")).read_text("utf-8")
    names = {group.name for group in hp.Plan.from_json(plan).groups}
    assert names
    assert not any(name.startswith("layer1") or name == "layer2.0.conv1" for name in names)
