"""What numbers depend on besides a model is told, and is part of the keys of what is timed."""

from hessprune.lab.context import open_run
from hessprune.lab.environment import environment, timed_on, versions
from hessprune.lab.recipe import parse_recipe
from tests.lab.test_memory import RECIPE


def test_packages_and_the_machine_are_named(tmp_path) -> None:
    run = open_run(parse_recipe(RECIPE), tmp_path, tmp_path)
    assert versions()["torch"].startswith("2.")
    assert timed_on(run) == [environment()["cpu"], "cpu", versions().get("onnxruntime")]


def test_another_processor_times_anew(tmp_path, monkeypatch) -> None:
    run = open_run(parse_recipe(RECIPE), tmp_path, tmp_path)
    before = timed_on(run)
    monkeypatch.setattr("hessprune.lab.environment.cpu_name", lambda: "another one")
    assert timed_on(run) != before
