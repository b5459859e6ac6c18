"""Benchmarks run on request, in hours: what can be told in seconds is that their names still exist."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_finds_what_it_imports_and_says_what_it_claims(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in {"hessprune", "support"}:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert module.__doc__
    assert (FOLDER / f"{name}.py").read_text("utf-8").count('if __name__ == "__main__"') == 1


def test_the_phases_of_a_whole_call_are_where_the_benchmark_of_scale_times_them() -> None:
    phases = importlib.import_module("scale").PHASES
    for place in phases.values():
        module, _, attribute = place.partition(":")
        assert callable(getattr(importlib.import_module(f"hessprune.{module}"), attribute))
