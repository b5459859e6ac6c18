"""Train, find, widen, train: at equal parameters, again after a kill, from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hessprune.errors import ArgumentError
from hessprune.foundation.progress import listening
from hessprune.lab import expanding
from hessprune.lab.cli import app
from hessprune.lab.expanding import ExpandSettings, expand
from hessprune.lab.recipe import load_recipe, packaged_recipe
from hessprune.lab.report.expansion import Expansion

pytestmark = pytest.mark.slow
QUICK = ("model.pretrain.epochs=2", "finetune.epochs=1", "data.calibration_size=96")
ASKED = ExpandSettings(seeds=(0,), levels=(0.5,))


class Killer:
    """Interrupts when the second model is trained: the first wider one."""

    def __init__(self) -> None:
        self.trainings = 0

    def start(self, label, total):
        self.trainings += label == "training"
        return 0

    def advance(self, handle, steps, note):
        if self.trainings == 2:
            raise KeyboardInterrupt

    def finish(self, handle):
        pass


@pytest.fixture(scope="module")
def settings():
    return load_recipe(packaged_recipe("digits-narrow"), QUICK)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> tuple[Path, Expansion]:
    out = tmp_path_factory.mktemp("whole")
    return out, expand(settings, out, expansion=ASKED)


def test_all_ways_to_widen_have_equal_parameters(whole):
    _, found = whole
    by_name = {variant.name: variant for variant in found.variants}
    assert list(by_name) == ["dense", "bottlenecks by joint", "random", "uniform", "reallocated", "unchanged"]
    limit = 1.5 * by_name["dense"].params
    for name in ("bottlenecks by joint", "random", "uniform", "reallocated"):
        assert 0.9 * limit < by_name[name].params <= limit, name
    assert any("train for 1 more epoch, also the unchanged one" in note for note in found.notes)
    assert by_name["unchanged"].params == by_name["dense"].params
    assert len(set(by_name["uniform"].widths)) > len(by_name["random"].widths)
    assert all(variant.epoch in (0, 1) for variant in found.variants if variant.name != "dense")


def test_it_leaves_json_and_a_page(whole):
    out, found = whole
    assert Expansion.load(out / "expansion.json") == Expansion.from_json(json.loads(json.dumps(found.to_json())))
    assert {path.name for path in out.iterdir()} == {"expansion.json", "expansion.html", "bottlenecks.json", "stages"}
    assert "bottleneck" in (out / "expansion.html").read_text("utf-8")


def test_a_killed_run_continues_to_the_same_end(whole, settings, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), listening(Killer()):
        expand(settings, tmp_path, expansion=ASKED)
    calls = []
    find = expanding.find_bottlenecks
    monkeypatch.setattr(expanding, "find_bottlenecks", lambda *a, **k: calls.append(1) or find(*a, **k))
    assert expand(settings, tmp_path, expansion=ASKED).variants == whole[1].variants
    assert not calls  # found before the kill


def test_another_growth_trains_the_dense_model_no_second_time(whole, settings, monkeypatch):
    out, found = whole
    monkeypatch.setattr(expanding, "find_bottlenecks", None)
    asked = ExpandSettings(seeds=(0,), levels=(0.5,), growth=1.2, controls=())
    assert expand(settings, out, expansion=asked).variants[0] == found.variants[0]
    expand(settings, out, expansion=ASKED)  # as it was, for the other tests


def test_the_command_prints_a_table_or_json(whole, settings, monkeypatch):
    out, found = whole
    monkeypatch.setattr(expanding, "ExpandSettings", type("Few", (), {"from_text": staticmethod(lambda **_: ASKED)}))
    words = ["bottlenecks", str(packaged_recipe("digits-narrow")), "--out", str(out)]
    words += [f"--set={setting}" for setting in QUICK]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "points over uniform widening, one seed, no error known" in result.stdout
    assert "unchanged" in result.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert Expansion.from_json(document).variants == found.variants


def test_settings_are_read_and_checked():
    asked = ExpandSettings.from_text(methods="sosp-h,joint(temperature=4)", growth=2.0, seeds="3")
    assert (asked.methods, asked.growth, asked.seeds) == (("sosp-h", "joint(temperature=4)"), 2.0, (3,))
    assert ExpandSettings.from_text(methods=None, growth=None, seeds=None) == ExpandSettings()
    with pytest.raises(ArgumentError, match=r"`controls` some of unchanged, uniform, random"):
        ExpandSettings(controls=("unifrom",))
    with pytest.raises(ArgumentError, match="`growth` must be a number from"):
        ExpandSettings(growth=0.5)
