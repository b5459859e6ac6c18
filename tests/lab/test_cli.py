import atexit
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hessprune import __version__
from hessprune.costs.model import Cost
from hessprune.errors import DataError
from hessprune.lab import run as pipeline
from hessprune.lab.cli import app, main
from hessprune.lab.report.inspection import GroupRow, Inspection
from hessprune.lab.terminal import print_inspection

runner = CliRunner()
QUICK = [
    f"--set={setting}"
    for setting in (
        "model.pretrain.epochs=1",
        "finetune.epochs=1",
        "data.calibration_size=64",
        "report.curve=[0.5]",
        "report.baselines=false",
        "report.draws=1",
        "report.refits=own",
        "report.latency_repeats=2",
        "quantize.train.epochs=1",
    )
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, runner.invoke(app, ["demo", "--out", str(out), *QUICK])


def test_the_demo_leaves_everything_it_promises(demo):
    out, result = demo
    assert result.exit_code == 0, result.output
    names = {path.name for path in out.iterdir()}
    assert names == {"report.html", "report.json", "model", "model.onnx", "int8.onnx", "recipe.yaml", "stages"}
    assert result.stdout.rstrip().endswith("report.html, report.json, model/, model.onnx, int8.onnx")
    assert re.search(
        r"Digits ResNet: (2\d % of|a third of|30 % of) the MACs in INT8, [\d.]+ → [\d.]+ ms", result.stdout
    )
    assert "Pruned and fine-tuned" in " ".join(result.stdout.split())
    assert "error" not in result.stderr


@pytest.mark.slow
def test_the_demo_for_text_prunes_an_encoder(tmp_path):
    short = ["model.pretrain.epochs=1", "report.curve=[]", "report.baselines=false", "report.latency_repeats=2"]
    words = [word for value in short for word in ("--set", value)]
    result = runner.invoke(app, ["demo", "--text", "--out", str(tmp_path), *words])
    assert result.exit_code == 0, result.output
    assert re.search(r"Text encoder: .+ of the MACs in INT8, [\d.]+ → [\d.]+ ms", result.stdout)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {group["group"].split(".")[-1] for group in report["saliency"]} >= {"up"}
    assert report["data"]["noun"] == "sentence"


def test_run_takes_a_recipe_and_prints_json(demo):
    out, _ = demo
    result = runner.invoke(app, ["run", str(out / "recipe.yaml"), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((out / "report.json").read_text())


def test_compare_shows_a_table_and_prints_json(demo, tmp_path):
    recipe = str(demo[0] / "recipe.yaml")
    options = ["--methods", "random,magnitude", "--budgets", "0.6", "--seeds", "0", "--no-compensate"]
    command = ["compare", recipe, "--out", str(tmp_path), *options, "--set", "data.validation_size=50"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert re.search(r"no compensation, no training macs kept 60% random \d+\.\d magnitude \d+\.\d Accuracy in %", text)
    assert "one draw, seed 0: no spread" in text
    found = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert found == json.loads((tmp_path / "comparison.json").read_text("utf-8"))


def test_saliency_names_units_and_shares_them_with_a_run(demo):
    out, _ = demo
    before = sorted((out / "stages").glob("2-saliency-*"))
    command = ["saliency", str(out / "recipe.yaml"), "--out", str(out), "--top", "1"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert sorted((out / "stages").glob("2-saliency-*")) == before
    found = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    first = found["groups"][0]
    least = min(range(32), key=first["values"].__getitem__)
    assert re.search(rf"conv1 +32 +{least}:", result.stdout)


def test_prune_prints_a_few_lines_or_json_and_leaves_a_folder(tmp_path):
    words = ["prune", "digits-resnet", "--calibration", "digits", "--samples", "32", "--out", str(tmp_path)]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"Budget\(macs=0.5\): [\d.]+% of macs kept", lines[0])
    assert re.fullmatch(r"accuracy on 134 validation samples: [\d.]+% → [\d.]+%, not fine-tuned", lines[3])
    assert lines[-1].startswith("model = hp.load(")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "plan.json"}
    found = json.loads(runner.invoke(app, [*words, "--json", "--quiet"]).stdout)
    assert found["macs"][1] <= found["macs"][0] / 2


def test_the_version_is_one_line():
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"hessprune {__version__}\n")


def test_no_command_shows_the_help_and_no_empty_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hessprune"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert "Commands" in shown.out
    assert shown.err == ""


def test_inspect_leaves_ignored_layers_alone():
    arguments = ["inspect", "digits-resnet", "--input-shape", "1,8,8", "--ignore", "layer1.*", "--json"]
    found = json.loads(runner.invoke(app, arguments).stdout)
    assert "it is ignored on request" in found["frozen"]
    assert not any(group["name"].startswith("layer1") for group in found["groups"])


def test_inspect_shows_groups_and_reasons():
    result = runner.invoke(app, ["inspect", "digits-resnet", "--input-shape", "1,8,8"])
    assert result.exit_code == 0, result.output
    text = re.sub(" +", " ", result.stdout)
    assert "digits-resnet on float32 (1, 1, 8, 8): " in text
    assert "\n6 groups, 224 units\n" in text
    assert re.search(r"\nlayer1.0.conv1 16 18.4 k 290 layer1.0.conv2 *\n", text)
    assert re.search(r"\nconv1 \+ 1 16 .* layer1.0.conv1 \+ 2 *\n", text)
    assert re.search(r"\nfrozen because the model returns it: linear.weight dim 0, linear.bias dim 0\n$", text)


def test_what_goes_into_a_pipe_keeps_its_lines_whole(capsys):
    names = (f"encoder.{'layers.' * 30}linear1", f"encoder.{'layers.' * 30}linear2")
    row = GroupRow(name=names[0], units=3, macs=4, params=5, producers=names[:1], consumers=names[1:])
    why = {"the source code fixes its size [here]": ("a.weight dim 0",)}
    cost = Cost(macs=1, params=1, bytes=4)
    print_inspection(Inspection(model="net", inputs="float32 (1, 3)", cost=cost, groups=(row,), frozen=why))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"{names[0]} 3 4 5 {names[1]}" in lines
    assert "frozen because the source code fixes its size [here]: a.weight dim 0" in lines


def test_inspect_prints_json():
    result = runner.invoke(app, ["inspect", "digits-resnet", "--input-shape", "1,8,8", "--json"])
    found = json.loads(result.stdout)
    assert found["cost"]["params"] == 77_754
    first = found["groups"][1]
    assert (first["name"], first["units"]) == ("layer1.0.conv1", 16)
    assert first["macs"] == 2 * 9 * 16 * 64  # read and written by 3×3 convolutions with 16 channels at 8×8 positions
    assert first["params"] == 2 * 9 * 16 + 2
    assert first["producers"] == ["layer1.0.conv1"]
    assert first["consumers"] == ["layer1.0.conv2"]


@pytest.mark.parametrize("command", ["demo", "run", "prune", "inspect", "saliency", "compare", "bottlenecks"])
def test_help_holds_an_example(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: hessprune {command}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], r"recipe must be a readable YAML file, got 'absent.yaml'"),
        (["demo", "--set", "prune.budget.macs=0"], r"`prune.budget`: .*got 0"),
        (["demo", "--set", "prune.budgt=1"], r"unknown key `prune.budgt`. Did you mean 'budget'\?"),
        (["demo", "--set", "model.name=resnet57"], r"known model.*Did you mean 'resnet56'\?"),
        (["demo", "--set", "model={weights: absent.pt}"], r"absent.pt.*existing file"),
        (["demo", "--set", "data={source: npz, root: absent.npz}"], r"absent.npz"),
        (["compare", "digits.yaml", "--methods", "happ"], r"`method` must be one of .*Did you mean 'hap'\?"),
        (["compare", "digits.yaml", "--budgets", "0.5;0.4"], r"`budgets` must be numbers with commas"),
        (["compare", "absent.yaml"], r"recipe must be a readable YAML file, got 'absent.yaml'"),
        (["inspect", "resnet20", "--ignore", "absent"], r"`ignore` must name modules of the model, got 'absent'"),
        (["inspect", "resnet57"], r"Did you mean 'resnet56'\?"),
        (
            ["inspect", "resnet20", "--input-shape", "3;32;32"],
            r"`input_shape` must be positive integers.*got '3;32;32'",
        ),
        (["inspect", "resnet20", "--input-shape", "3,0,32"], r"`input_shape` must be positive integers"),
        (["inspect", "resnet20", "--weights", "absent.pt"], r"absent.pt.*existing file"),
        (["prune", "resnet20"], r"`calibration` must be given for method 'joint'"),
        (["prune", "resnet20", "--calibration", "digits", "--budget", "half"], r"`budget` must be QUANTITY=VALUE"),
        (["prune", "resnet20", "--calibration", "digits", "--method", "happ"], r"Did you mean 'hap'"),
        (["prune", "absent.py:make", "--calibration", "digits"], r"file 'absent.py' of `name` must exist"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = runner.invoke(app, ["demo", "--out", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert re.fullmatch(r"error: output must be writable.*\n", result.stderr)


def test_an_interrupt_says_how_to_continue(tmp_path, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupted)
    result = runner.invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert result.stderr == "interrupted: nothing is lost, the same command continues\n"


def test_an_error_of_several_lines_becomes_one(tmp_path, monkeypatch):
    def failing(*arguments, **named):
        raise DataError("first\n  second")

    monkeypatch.setattr(pipeline, "run", failing)
    assert runner.invoke(app, ["demo", "--out", str(tmp_path)]).stderr == "error: first second\n"


def test_reading_the_command_line_imports_nothing_heavy():
    source = str(Path(__file__).parents[2] / "src")
    program = (
        "import sys, hessprune.lab.cli\n"
        "heavy = {'matplotlib', 'pydantic', 'sklearn', 'onnx', 'onnxruntime', 'torchao', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": source}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect"], "error: Missing argument 'model'. Try 'hessprune inspect --help'.\n"),
        (["inspect", "resnet20", "--num-classes", "ten"], r"error: Invalid value for '--num-classes': .*\n"),
        (["insect"], r"error: No such command 'insect'\..*\n"),
    ],
)
def test_wrong_usage_is_one_line_too(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hessprune", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert re.fullmatch(message, capsys.readouterr().err)


def test_the_process_ends_without_a_last_search_for_garbage(monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(sys, "argv", ["hessprune", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert at_exit == [gc.freeze]


def test_help_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hessprune", "inspect", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert "Example" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, []),
        ("a: &a [x, x]\nb: &b {c: *b}", []),
        ("model: {weights: w}\nprune: {budget: {macs: 0.5}}\nseed: !!python/object/apply:os.system [touch ran]", []),
        ("model: {weights: w}\nprune: {budget: {macs: 0.5}}", ["seed=2001-99-99"]),
        ("model: {weights: w}\nprune: {budget: {macs: 0.5}}", ["data.root=" + "x" * 900, "data.source=npz"]),
        ("model: {weights: " + "y" * 900 + "}\nprune: {budget: {macs: 0.5}}", []),
    ],
    ids=["deep", "endless", "code", "no date", "long folder", "long file"],
)
def test_hostile_recipes_end_in_one_line_and_write_nothing_outside(recipe, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(recipe)
    result = runner.invoke(app, ["run", "r.yaml", "--out", "out", *[f"--set={setting}" for setting in settings]])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr) <= 320
    assert {path.name for path in tmp_path.iterdir()} <= {"r.yaml", "out"}


def test_inspect_groups_by_kind_and_finds_what_is_asked_for(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)\n"
        "    return nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))\n"
    )
    arguments = ["inspect", f"{tmp_path / 'net.py'}:make", "--input-shape", "5,3"]
    text = re.sub(" +", " ", runner.invoke(app, arguments).stdout)
    assert re.search(r"\nneurons 12 *\n1.linear1 12 .*\nheads 2 *\n1.self_attn 2 ", text), text
    found = json.loads(runner.invoke(app, [*arguments, "--units", "embedding,qk,v", "--json"]).stdout)
    assert {group["kind"]: group["units"] for group in found["groups"]} == {"embedding": 8, "qk": 4}
    result = runner.invoke(app, [*arguments, "--units", "tails"])
    assert result.exit_code == 2
    assert "`units` must be a tuple of kinds of units, got ('tails',)" in result.stderr + result.stdout
