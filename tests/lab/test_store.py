import json
import shutil

import pytest
import torch
from torch import nn

from hessprune.errors import ArgumentError, CheckpointError
from hessprune.foundation.symmetric import Factor
from hessprune.lab.store import StageStore, load_saliency, load_state, save_saliency, save_state
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


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x41
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: path.write_bytes(path.read_bytes()[:20]), lambda path: path.unlink()],
    ids=["one byte flipped", "truncated", "missing"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "inner/facts.json"])
def test_a_damaged_stage_is_made_again(store, damage, name):
    def make(folder):
        save_state(nn.Linear(2, 2), folder)
        (folder / "inner").mkdir()
        (folder / "inner/facts.json").write_text('{"facts": "of the stage"}')

    stage = store.run("1-dense", make)
    assert store.run("1-dense", make).reused
    damage(stage.file(name))
    assert not store.run("1-dense", make).reused
    assert store.run("1-dense", make).reused


def test_a_file_that_came_later_changes_nothing(store):
    stage = store.run("1-dense", lambda folder: None)
    stage.file("notes.txt").write_text("mine")
    assert store.run("1-dense", lambda folder: None).reused


def test_two_stages_that_changed_places_are_made_again(store):
    for name in ("3-plan-a", "3-plan-b"):
        store.run(name, lambda folder, name=name: (folder / "plan.json").write_text(name))
    one, other = store.root / "3-plan-a", store.root / "3-plan-b"
    shutil.copyfile(other / "plan.json", one / "plan.json")
    assert not store.run("3-plan-a", lambda folder: None).reused


@pytest.mark.parametrize("name", ["../1-dense", "/tmp/1-dense", "1-dense/x", "..", "", "1-nothing", "dense"])
def test_names_of_stages_stay_in_the_folder(store, name):
    with pytest.raises(ArgumentError, match=r"plain folder name|kind of stage"):
        store.run(name, lambda folder: None)


@pytest.mark.parametrize("place", ["1-dense", "1-dense/partial"])
def test_nothing_is_written_through_a_link(store, tmp_path, place):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("stays")
    key = store.run("1-dense", lambda folder: None).key
    marker = json.dumps({"key": key, "done": False})
    (store.root / "1-dense/stage.json").write_text(marker)  # interrupted, so that it continues
    if place == "1-dense":
        shutil.rmtree(store.root / place)
        (elsewhere / "stage.json").write_text(marker)
    (store.root / place).symlink_to(elsewhere)

    def make(folder):
        (folder / "partial").mkdir(exist_ok=True)
        (folder / "partial/result").write_text("new")

    store.run("1-dense", make)
    assert {path.name for path in elsewhere.iterdir()} <= {"mine", "stage.json"}
    assert (elsewhere / "mine").read_text() == "stays"
    assert (store.root / "1-dense/partial/result").read_text() == "new"


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b"x" * 9), lambda path: path.unlink()])
def test_files_that_cannot_be_read_name_the_folder_to_delete(tmp_path, damage):
    save_saliency(Saliency({"a": torch.zeros(3).double()}, provenance={}), tmp_path)
    save_state(nn.Linear(2, 2), tmp_path)
    for name in ("saliency.json", "model.safetensors"):
        if damage is not flip or name == "saliency.json":
            damage(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"must be whole, got .*Delete that folder; the same command makes"):
        load_saliency(tmp_path)
    if damage is flip:
        flip_header = bytearray((tmp_path / "model.safetensors").read_bytes())
        flip_header[12] ^= 0x41
        (tmp_path / "model.safetensors").write_bytes(flip_header)
    with pytest.raises(CheckpointError, match="must be whole"):
        load_state(nn.Linear(2, 2), tmp_path)
