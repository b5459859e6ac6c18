import json

import pytest

from hessprune._store import StageStore


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def test_a_finished_stage_is_not_made_again(store):
    calls = []
    first = store.run("1-a", lambda folder: calls.append(folder), {"x": 1})
    again = StageStore(store.root).run("1-a", lambda folder: calls.append(folder), {"x": 1})
    assert (len(calls), first.reused, again.reused) == (1, False, True)
    assert first.key == again.key


def test_other_inputs_start_afresh(store):
    store.run("1-a", lambda folder: (folder / "old").write_text(""), 1)
    stage = store.run("1-a", lambda folder: (folder / "new").write_text(""), 2)
    assert not stage.file("old").exists()
    assert stage.file("new").exists()


def test_a_change_reaches_the_stages_that_depend_on_it_and_no_others(store):
    def build(setting):
        first = store.run("1-a", lambda folder: None, setting)
        return [store.run("2-b", lambda folder: None, first), store.run("2-c", lambda folder: None, "own")]

    build(1)
    assert [stage.reused for stage in build(2)] == [False, True]


def test_an_interrupted_stage_continues_with_what_it_left(store):
    def interrupted(folder):
        (folder / "partial").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run("1-a", interrupted, 1)
    seen = []
    stage = store.run("1-a", lambda folder: seen.append((folder / "partial").read_text()), 1)
    assert seen == ["half"]
    assert json.loads(stage.file("stage.json").read_text())["done"]


@pytest.mark.parametrize("marker", ["", "{", "[1]", '{"key": 3}'])
def test_a_broken_marker_starts_afresh(store, marker):
    store.run("1-a", lambda folder: (folder / "old").write_text(""), 1)
    (store.root / "1-a" / "stage.json").write_text(marker)
    stage = store.run("1-a", lambda folder: None, 1)
    assert not stage.reused
    assert not stage.file("old").exists()
