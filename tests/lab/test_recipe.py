import json
from pathlib import Path

import pytest

from hessprune.costs.budget import Budget
from hessprune.errors import RecipeError
from hessprune.lab.recipe import load_recipe, packaged_recipe, parse_recipe, write_recipe
from hessprune.planning.implants import Implant
from hessprune.training.config import FinetuneConfig

MINIMAL = {"model": {"weights": "w.safetensors"}, "prune": {"budget": {"macs": 0.5}}}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_read_and_write_back_to_the_same_settings(path, tmp_path):
    settings = load_recipe(path)
    assert load_recipe(write_recipe(settings, tmp_path / "again.yaml")) == settings


def test_defaults_are_filled_in():
    settings = parse_recipe(MINIMAL)
    assert settings.prune.budget == Budget(macs=0.5)
    assert settings.prune.method == "joint"
    assert settings.finetune == FinetuneConfig()
    assert settings.to_json()["prune"]["budget"] == {"macs": 0.5}


def test_overrides_win_and_create_sections(tmp_path):
    path = _written(tmp_path, "model: {weights: a}\nprune: {budget: {macs: 0.5}}\n")
    settings = load_recipe(path, ["prune.budget.macs=0.4", "finetune.epochs=3", "report.curve=[0.9, 0.5]", "seed=7"])
    assert settings.prune.budget == Budget(macs=0.4)
    assert settings.finetune.epochs == 3
    assert settings.report.curve == (0.9, 0.5)
    assert settings.seed == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prun": {}}, r"unknown key `prun`\. Did you mean 'prune'\?"),
        ({"prune": {"budget": {"mac": 0.5}}}, r"unknown key `prune\.budget\.mac`\. Did you mean 'macs'\?"),
        ({"model": {"weights": "w", "qqq": 1}}, r"unknown key `model\.qqq`\. Choose from name, weights, pretrain"),
        ({"model": {"pretrain": {"epoch": 3}}}, r"`model\.pretrain\.epoch`\. Did you mean 'epochs'\?"),
        ({"finetune": {"lr": -1}}, r"`finetune`: `lr` must be"),
        ({"finetune": {"epochs": "many"}}, r"`finetune\.epochs`: should be a valid integer.*got 'many'"),
        ({"finetune": {"optimizer": "adam"}}, r"`finetune\.optimizer`: should be 'sgd' or 'adamw', got 'adam'"),
        ({"prune": {"budget": {"macs": 0}}}, r"`prune\.budget`: .*\(0, 1\].*got 0"),
        ({"prune": {"budget": {"macs": 0.5, "params": 0.5}}}, r"exactly one of macs, params.*got macs and params"),
        ({"prune": {"budget": {}}}, r"exactly one of macs, params.*got none"),
        ({"prune": {"budget": {"macs": float("nan")}}}, r"got nan"),
        ({"prune": {"method": "happ", "budget": {"macs": 0.5}}}, r"`method` must be one of.*Did you mean 'hap'\?"),
        ({"prune": {"ranking": {"step": 0}, "budget": {"macs": 0.5}}}, r"`step` must be"),
        ({"prune": {}}, r"`prune\.budget` must be given"),
        ({"prune": 3}, r"`prune` must be a section of keys, got 3"),
        ({"model": {}}, r"`model` must have either `weights` or `pretrain`, got neither"),
        ({"model": {"weights": "w", "pretrain": {}}}, r"either `weights` or `pretrain`, got both"),
        ({"data": {"mean": [0.5]}}, r"`mean` and `std` must be given together"),
        ({"data": {"batch_size": 0}}, r"`batch_size` must be an integer of at least 1, got 0"),
        ({"report": {"curve": [1.5]}}, r"`curve` must be a number from 0.01 to 1, got 1.5"),
        ({"report": {"latency_repeats": 0}}, r"`latency_repeats` must be an integer of at least 1, got 0"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0, got -1"),
        ({"threads": 0}, r"`threads` must be an integer from 1 to 1024, got 0"),
    ],
)
def test_wrong_recipes_name_the_key_and_the_remedy(change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(MINIMAL | change)
    assert "\n" not in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(RecipeError, match=r"`sed`.*`finetun`"):
        parse_recipe(MINIMAL | {"sed": 1, "finetun": {}})
    with pytest.raises(RecipeError, match=r"`seed`.*`finetune.lr`"):
        parse_recipe(MINIMAL | {"seed": "x", "finetune": {"lr": "y"}})


def test_files_that_are_no_recipe_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"readable YAML file, got '.*absent.yaml' \(No such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match=r"recipe must be YAML, got '.*recipe.yaml': .*line 1"):
        load_recipe(_written(tmp_path, "a: [1"))
    with pytest.raises(RecipeError, match="mapping of sections, got a list"):
        load_recipe(_written(tmp_path, "- a\n"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not text"):
        load_recipe(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("override", ["prune.budget.macs", "=3", "prune.=3"])
def test_overrides_must_be_key_and_value(override, tmp_path):
    with pytest.raises(RecipeError, match=r"`--set` must be KEY=VALUE, got .*prune.budget.macs=0.4"):
        load_recipe(_written(tmp_path, "{}"), [override])


def test_override_values_must_be_yaml(tmp_path):
    with pytest.raises(RecipeError, match="`--set seed` must have a YAML value"):
        load_recipe(_written(tmp_path, "{}"), ["seed=[1"])


def test_packaged_recipes_are_found_by_name():
    assert load_recipe(packaged_recipe("digits")).data.source == "digits-16"
    with pytest.raises(RecipeError, match="packaged recipe must exist, got 'nothing'"):
        packaged_recipe("nothing")


def _written(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_implants_have_a_section_of_their_own(tmp_path):
    path = _written(tmp_path, "model: {weights: a}\nprune: {budget: {macs: 0.5}}\n")
    assert load_recipe(path).prune.implant is None
    assert load_recipe(path, ["prune.implant.share=0.1"]).prune.implant == Implant(share=0.1)
    settings = load_recipe(path, ["prune.implant.share=0.5", "prune.implant.start=zero"])
    assert settings.prune.implant == Implant(share=0.5, start="zero")
    assert load_recipe(write_recipe(settings, tmp_path / "again.yaml")) == settings
    with pytest.raises(RecipeError, match=r"`prune\.implant`: `implant` must be a number from 0 to 1, got 2"):
        load_recipe(path, ["prune.implant.share=2"])


BASE = "model: {name: digits-resnet, pretrain: {epochs: 1}}\nprune: {budget: {macs: 0.5}}\n"
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "must be YAML, got .*: nested too deeply"),
        (BASE + "seed: 2001-99-99\n", "must be YAML, got .*: month must be in"),
        (BASE + "seed: " + "9" * 5000, "must be YAML, got .*digits"),
        (BASE + "seed: 99999999999999999999999\n", "`seed` must be a number of at most 64 bits, got 9999"),
        (BASE + "seed: 1\nseed: 2\n", "the key 'seed' twice"),
        (BASE + ALIASES, "more than 10,000 values, or a value that holds itself"),
        (BASE + "data: &d {root: *d}\n", "more than 10,000 values, or a value that holds itself"),
        (BASE + "seed: !!python/object/apply:os.system [touch ran]\n", "must be YAML, got .*could not determine a"),
        (BASE + "seed: " + "x" * 500_000, "`seed` must be one line of at most 1000 characters, got 'xxx.*…x"),
        (BASE + "x" * 1000 + ": 1", "unknown key `xxx.*…x"),
        ("# " + "x" * 1_000_000, "more than 1,000,000 bytes"),
        (BASE + "data: {root: " + json.dumps("a\0b") + "}", "`data.root` must be one line"),
        (BASE + "".join(f"k{number}: 1\n" for number in range(100)), r"unknown key `k0`.*; and \d+ more problems"),
        (BASE + "finetune: {epochs: true}", "`finetune.epochs` must be no true or false, got True"),
        (BASE + "finetune: {lr: .inf}", "`finetune.lr` must be a finite number, got inf"),
        (BASE + "report: {curve: [true]}", "`report.curve` must be no true or false"),
        (BASE + "threads: 1000000", "`threads` must be an integer from 1 to 1024, got 1000000"),
        ("1: 2\nnull: 3\n[a]: 4", r"unknown key|must be YAML"),
    ],
    ids=lambda value: value[-40:],
)
def test_hostile_recipes_are_one_short_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = _written(tmp_path, text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("path", [("prune", "method"), ("loss",), ("prune", "budget", "macs"), ("quantize", "target")])
def test_long_values_are_shortened(path):
    recipe = json.loads(json.dumps(MINIMAL))
    node = recipe
    for key in path[:-1]:
        node = node.setdefault(key, {})
    node[path[-1]] = "é" * 900
    with pytest.raises(RecipeError, match="é…é") as caught:
        parse_recipe(recipe)
    assert len(str(caught.value)) <= 300


def test_anchors_and_numbers_as_text_stay_allowed(tmp_path):
    text = "model: {name: digits-resnet, pretrain: &train {epochs: 1, lr: 1e-3}}\nprune: {budget: {macs: 0.5}}\n"
    settings = load_recipe(_written(tmp_path, text + "finetune: {<<: *train, epochs: 2}\n"))
    assert (settings.finetune.epochs, settings.finetune.lr) == (2, 0.001)
