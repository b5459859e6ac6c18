"""The published experiments: every cell of every scale is a valid recipe, and the short scale runs."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from hessprune.errors import RecipeError
from hessprune.lab.recipe import parse_recipe

FOLDER = Path(__file__).parents[1] / "studies"
STUDY = runpy.run_path(str(FOLDER / "study.py"))
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_every_study_is_named_in_the_table_of_the_folder():
    page = (FOLDER / "README.md").read_text()
    assert len(NAMES) >= 4
    assert all(f"| `{name}` |" in page for name in NAMES)


@pytest.mark.parametrize("scale", STUDY["SCALES"])
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_a_recipe(name, scale):
    cells = [*STUDY["Study"].read(name).cells(scale)]
    models = {parse_recipe(cell.settings).model.name for cell in cells}
    assert models
    assert len({cell.name for cell in cells}) == len(cells)


def test_later_settings_win_and_the_rest_stays():
    assert STUDY["merged"]({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}}, {"d": {"e": 5}}) == {
        "a": {"b": 4, "c": 2},
        "d": {"e": 5},
    }


def test_the_published_shares_reach_the_cells():
    cells = {cell.name: cell for cell in STUDY["Study"].read("ehap").cells("full")}
    assert len(cells) == 3 * 2 * 3
    assert cells["ResNet-56, CIFAR-100, BF16"].settings["prune"]["budget"] == {"units": 0.175}
    assert cells["ResNet-56, CIFAR-100, BF16"].published == {"parameters": "about 10 %"}


def test_an_unknown_study_names_those_that_exist():
    with pytest.raises(RecipeError, match="hap"):
        STUDY["Study"].read("happ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["../recipes/digits"], "study must be one of .*hap"),
        (["hap.yaml"], "study must be one of .*hap"),
        ([""], "study must be one of .*hap"),
        (["hap", "--cells", "-1"], "`--cells` must be at least 1, got -1"),
        (["hap", "--cells", "0"], "`--cells` must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, tmp_path, capsys):
    assert STUDY["main"]([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert re.fullmatch(f"error: {words}.*", said)
    assert not (tmp_path / "out").exists()


def test_a_cell_runs_and_its_row_has_the_paper_beside(tmp_path):
    cell = next(STUDY["Study"].read("hap").cells("smoke"))
    settings = STUDY["merged"](cell.settings, {"model": {"pretrain": {"epochs": 1}}, "finetune": {"epochs": 0}})
    cell = type(cell)(name=cell.name, settings=settings, published={"fine-tuned": 94.3})
    (row,) = STUDY["pruned"](cell, tmp_path, Path())
    assert 40 < int(row["parameters"].split()[0]) <= 50
    assert row["paper: fine-tuned"] == "94.3"
    assert row["paper: fine-tuned"] in STUDY["table"]("HAP", [row, {"cell": "other"}])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_short_scale_runs(name, tmp_path):
    text = STUDY["carry_out"](name, "smoke", tmp_path, Path())
    cells = [*STUDY["Study"].read(name).cells("smoke")]
    assert (tmp_path / "table.md").read_text() == text
    assert text.count("\n| ") >= len(cells) + 2
    assert yaml.safe_load((tmp_path / "study.json").read_text())["scale"] == "smoke"
