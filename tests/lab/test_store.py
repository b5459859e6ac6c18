import json

import pytest
import torch

from hessprune.foundation.symmetric import Factor
from hessprune.lab.store import StageStore, load_saliency, save_saliency
from hessprune.methods.values import Saliency


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def test_a_finished_stage_is_not_made_again(store):
    calls = []
    first = store.run("1-dense-a", lambda folder: calls.append(folder), {"x": 1})
    again = StageStore(store.root).run("1-dense-a", lambda folder: calls.append(folder), {"x": 1})
    assert (len(calls), first.reused, again.reused) == (1, False, True)
    assert first.key == again.key


def test_other_inputs_start_afresh(store):
    store.run("1-dense-a", lambda folder: (folder / "old").write_text(""), 1)
    stage = store.run("1-dense-a", lambda folder: (folder / "new").write_text(""), 2)
    assert not stage.file("old").exists()
    assert stage.file("new").exists()


def test_kept_by_content_results_stand_side_by_side(store):
    calls = []
    for value in (1, 2, 1):
        stage = store.run("1-dense-a", lambda folder: calls.append(folder), value, by_content=True)
        assert stage.folder.name.startswith("1-dense-a-")
    assert stage.reused
    assert len(calls) == 2
    side_by_side = StageStore(store.root, by_content=True)
    assert side_by_side.run("1-dense-a", calls.append, 2).reused


def test_a_version_raised_by_hand_starts_its_kind_afresh(store, monkeypatch):
    monkeypatch.setattr("hessprune.lab.store.VERSIONS", {"plan": 1, "dense": 1})
    for name in ("3-plan-a", "1-dense"):
        store.run(name, lambda folder: None, 1)
    monkeypatch.setattr("hessprune.lab.store.VERSIONS", {"plan": 2, "dense": 1})
    assert not store.run("3-plan-a", lambda folder: None, 1).reused
    assert store.run("1-dense", lambda folder: None, 1).reused


def test_a_change_reaches_the_stages_that_depend_on_it_and_no_others(store):
    def build(setting):
        first = store.run("1-dense-a", lambda folder: None, setting)
        return [store.run("3-plan-b", lambda folder: None, first), store.run("3-plan-c", lambda folder: None, "own")]

    build(1)
    assert [stage.reused for stage in build(2)] == [False, True]


def test_an_interrupted_stage_continues_with_what_it_left(store):
    def interrupted(folder):
        (folder / "partial").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run("1-dense-a", interrupted, 1)
    seen = []
    stage = store.run("1-dense-a", lambda folder: seen.append((folder / "partial").read_text()), 1)
    assert seen == ["half"]
    assert json.loads(stage.file("stage.json").read_text())["done"]


@pytest.mark.parametrize("marker", ["", "{", "[1]", '{"key": 3}'])
def test_a_broken_marker_starts_afresh(store, marker):
    store.run("1-dense-a", lambda folder: (folder / "old").write_text(""), 1)
    (store.root / "1-dense-a" / "stage.json").write_text(marker)
    stage = store.run("1-dense-a", lambda folder: None, 1)
    assert not stage.reused
    assert not stage.file("old").exists()


@pytest.mark.parametrize("extra", [None, torch.eye(3)], ids=["plain", "with errors and interactions"])
def test_a_saliency_survives_with_all_that_belongs_to_it(extra, tmp_path):
    values = {"b": torch.tensor([1.0, 2.0], dtype=torch.float64), "a": torch.zeros(1, dtype=torch.float64)}
    errors = None if extra is None else {name: value / 2 for name, value in values.items()}
    facts = {"method": "joint", "seed": 3}
    saved = Saliency(values, provenance=facts, per_cost=False, standard_error=errors, interactions=extra)
    save_saliency(saved, tmp_path)
    again = load_saliency(tmp_path)
    assert list(again) == ["b", "a"]
    assert all(torch.equal(again[name], values[name]) for name in values)
    assert (again.provenance, again.per_cost) == (facts, False)
    if extra is None:
        assert again.standard_error is None
        assert again.interactions is None
    else:
        assert torch.equal(again.interactions, extra)
        assert all(torch.equal(again.standard_error[name], errors[name]) for name in values)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_factor_of_interactions_survives(absolute, tmp_path):
    phi = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    saved = Saliency({"a": torch.zeros(3).double()}, provenance={}, interactions=Factor(phi, absolute))
    save_saliency(saved, tmp_path)
    again = load_saliency(tmp_path).interactions
    assert isinstance(again, Factor)
    assert again.absolute == absolute
    assert torch.equal(again.phi, phi)
