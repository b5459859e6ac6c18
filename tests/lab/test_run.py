"""A whole run on the digits, as small as it gets: resumed after a kill it ends as if nothing had happened."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import hessprune as hp
from hessprune.costs.budget import Budget
from hessprune.deploy.evaluation import evaluate
from hessprune.deploy.onnx_model import OnnxModel
from hessprune.errors import ArgumentError, BudgetError, DataError, OutputError
from hessprune.foundation.progress import listening
from hessprune.lab import integers, pruned, stages
from hessprune.lab.context import open_run
from hessprune.lab.models import build_model
from hessprune.lab.recipe import parse_recipe
from hessprune.lab.report import RunReport
from hessprune.lab.run import run as run_recipe
from hessprune.lab.store import StageStore
from hessprune.lab.terminal import print_report
from hessprune.planning.implants import Implant
from tests.huggingface import write_decoder, write_model, write_sentences, write_text

TINY = {
    "threads": 1,
    "data": {"validation_size": 60, "calibration_size": 64, "batch_size": 128},
    "model": {"pretrain": {"epochs": 1, "lr": 0.1, "checkpoint_every_steps": 2}},
    "prune": {"method": "hap", "budget": {"macs": 0.5}},
    "finetune": {"epochs": 1, "lr": 0.05, "checkpoint_every_steps": 2},
    "export": {"onnx": False},
    "report": {"curve": [0.7, 0.01], "latency_repeats": 2},
}


class Killer:
    """A listener that interrupts the run at the n-th step of the loops with one label."""

    def __init__(self, label, step):
        self.label, self.left, self.open = label, step, {}

    def start(self, label, total):
        self.open[len(self.open)] = label
        if label == self.label and self.left == 0:
            raise KeyboardInterrupt
        return len(self.open) - 1

    def advance(self, handle, steps, note):
        if self.open[handle] == self.label:
            self.left -= steps
            if self.left <= 0:
                raise KeyboardInterrupt

    def finish(self, handle):
        pass


@pytest.fixture(scope="module")
def settings():
    return parse_recipe(TINY)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, run_recipe(settings, out)


def test_the_report_is_complete(finished):
    out, report = finished
    assert RunReport.load(out / "report.json") == report
    assert list(report.models) == ["dense", "pruned", "finetuned"]
    assert set(report.baselines) == {"magnitude-pruned", "random-pruned"}
    assert {point.method for point in report.curve} == {"hap", "magnitude", "random"}
    assert len(report.curve) == 3  # the second budget lies below the floors
    assert report.data["test"] == report.final.num_samples == 450
    assert report.models["pruned"].latency_ms > 0
    assert all(rival.latency_ms > 0 for rival in report.baselines.values())
    assert all(min(row.ms) > 0 for row in report.table)
    assert report.estimate.relative_error == 0
    assert report.settings["prune"]["budget"] == {"macs": 0.5}
    assert "<svg" in (out / "report.html").read_text("utf-8")


def test_the_budget_is_met_within_one_unit(finished):
    _, report = finished
    dense, final = report.models["dense"], report.final
    largest_unit = dense.macs / 16  # one channel of the first stage, where all of them are 16
    assert dense.macs / 2 - largest_unit < final.macs <= dense.macs / 2
    assert report.plan["macs"] == [dense.macs, final.macs]


def test_layers_and_saliencies_agree_with_the_plan(finished):
    _, report = finished
    kept = {layer.group: layer.kept for layer in report.layers}
    assert kept == {name: len(units) for name, units in report.plan["kept"].items()}
    assert [layer.name for layer in report.layers][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert {group.group: sum(group.kept) for group in report.saliency} == kept


def test_the_saved_model_is_the_reported_one(finished, settings):
    out, report = finished
    model = hp.load(out / "model", lambda: build_model("digits-resnet", num_classes=10, in_channels=1))
    data = open_run(settings, out, out).data
    assert evaluate(model, data.batches("test", 128)).accuracy == report.final.accuracy


@pytest.mark.parametrize(
    ("label", "step"),
    [
        pytest.param("training", 5, marks=pytest.mark.slow),
        pytest.param("3-plan-random", 0, marks=pytest.mark.slow),  # while planning
        ("training", 14),  # while fine-tuning
    ],
)
def test_a_killed_run_resumes_and_ends_the_same(finished, settings, tmp_path, label, step):
    _, expected = finished
    with pytest.raises(KeyboardInterrupt), listening(Killer(label, step)):
        run_recipe(settings, tmp_path)
    assert not (tmp_path / "report.json").exists()
    assert _timeless(run_recipe(settings, tmp_path)) == _timeless(expected)


def test_a_finished_run_is_only_read_again(finished, settings, monkeypatch):
    out, report = finished
    monkeypatch.setattr(stages, "finetune", None)
    monkeypatch.setattr("hessprune.pruning.prune.saliency", None)
    assert run_recipe(settings, out) == report


def test_a_changed_recipe_repeats_only_what_depends_on_it(finished, settings, tmp_path, monkeypatch):
    made = []
    run = StageStore.run

    def recording(self, name, make, *inputs, **options):
        stage = run(self, name, make, *inputs, **options)
        made.extend([] if stage.reused else [name])
        return stage

    monkeypatch.setattr(StageStore, "run", recording)
    shutil.copytree(finished[0], tmp_path / "run")
    changed = replace(settings, report=replace(settings.report, curve=()), finetune=replace(settings.finetune, lr=0.01))
    run_recipe(changed, tmp_path / "run")
    assert made == ["5-finetuned-hap", "6-measured-finetuned", *TIMED, *(f"8-curve-{m}" for m in METHODS)]


TIMED = ("7-latency", "7-latency-layers")
METHODS = ("hap", "magnitude", "random")


def test_weights_from_a_file_and_no_baselines(finished, settings, tmp_path):
    out, first = finished
    weights = out / "stages" / "1-dense" / "model.safetensors"
    document = TINY | {"model": {"weights": str(weights)}, "report": {"baselines": False, "curve": []}}
    report = run_recipe(parse_recipe(document | {"finetune": {"epochs": 0}}), tmp_path)
    assert report.models["dense"].accuracy == first.models["dense"].accuracy
    assert report.baselines == {}
    assert "pretrain" not in report.history


def test_wrong_output_and_missing_data_are_one_clear_error(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="output must be writable"):
        run_recipe(settings, tmp_path / "file")
    absent = replace(settings, data=replace(settings.data, source="npz", root="absent.npz"))
    with pytest.raises(DataError, match=r"absent\.npz"):
        run_recipe(absent, tmp_path / "out", data_root=tmp_path)


def test_compensation_never_raises_the_calibration_loss(finished, settings):
    out, _ = finished
    run = open_run(settings, out, out)
    model, batches = stages.dense_model(run).model, run.batches("calibration")
    plain, compensated = (
        hp.prune(model, run.example, batches, budget=Budget(macs=0.4), method="magnitude", compensate=flag)
        for flag in (False, True)
    )
    assert plain.plan.removed == compensated.plan.removed
    assert evaluate(compensated.model, batches).loss < evaluate(plain.model, batches).loss


def test_a_run_with_implants_shows_them_in_the_report(finished, settings, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    implant, plain = Implant(share=0.4), replace(settings.report, curve=(), baselines=False)
    finetune = replace(settings.finetune, epochs=0)
    changed = replace(settings, prune=replace(settings.prune, implant=implant), report=plain, finetune=finetune)
    report = run_recipe(changed, tmp_path / "run")
    units = sum(sum(group.implanted) for group in report.saliency)
    assert units == sum(len(units) for units in report.plan["implanted"].values()) > 0
    assert all(layer.kept + layer.implanted <= layer.dense for layer in report.layers)
    assert any(layer.implanted for layer in report.layers)
    model = hp.load(tmp_path / "run" / "model", lambda: build_model("digits-resnet", num_classes=10, in_channels=1))
    assert hp.cost(model, torch.zeros(1, 1, 8, 8)).macs == report.final.macs
    print_report(report, tmp_path)
    assert f"{units} implanted" in capsys.readouterr().out


def _timeless(report):
    """A report without what is timed."""
    document = json.loads(json.dumps(report.to_json()))
    for row in document["table"]:
        assert min(row.pop("ms")) > 0
    for result in (document["dense"], document["pruned"], document["finetuned"], *document["baselines"].values()):
        for key in ("latency_ms", "latency_p10_ms", "latency_p90_ms"):
            assert result.pop(key) > 0
    assert all(seconds >= 0 for seconds in document.pop("seconds").values())
    document.pop("date")
    document["notes"] = [note for note in document["notes"] if not note.startswith("Other work ran")]
    return document


@pytest.mark.slow
def test_a_recipe_may_end_in_integers(settings, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)  # everything up to the fine-tuned model is done
    quantize = parse_recipe(TINY | {"quantize": {"train": {"epochs": 1, "checkpoint_every_steps": 2}}}).quantize
    wanted = replace(settings, quantize=quantize)
    assert wanted.quantize.train.lr == 1e-4
    with pytest.raises(KeyboardInterrupt), listening(Killer("calibrating", 1)):
        run_recipe(wanted, out)
    report = run_recipe(wanted, out)
    assert list(report.models) == ["dense", "pruned", "finetuned", "int8"]
    assert report.models["int8"].size_bytes == (out / "int8.onnx").stat().st_size
    assert report.models["int8"].accuracy == evaluate(out / "int8.onnx", _test_batches(wanted, out)).accuracy
    assert abs(report.models["int8"].accuracy - report.models["finetuned"].accuracy) < 0.05
    assert report.environment["latency_runtime"] == "onnxruntime"
    assert [point.epoch for point in report.history["quantize"]] == [0, 1]
    assert "INT8" in (out / "report.html").read_text("utf-8")
    assert report.notes[-1] == "Layers of it left in FP32: none."


@pytest.mark.slow
def test_a_recipe_may_leave_the_choice_of_fp32_layers_to_their_sensitivity(settings, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    seen = {}

    def choose(model, example_inputs, batches, **options):
        seen.update(options, images=sum(len(labels) for _, labels in batches))
        return {"conv1": "sensitivity 0.031: 62% of the loss of rounding"}

    monkeypatch.setattr(integers, "choose_fp32_layers", choose)
    section = {"keep_fp32": "auto", "tolerance": 0.3, "weight_bits": 8, "train": {"epochs": 0}}
    quantize = parse_recipe(TINY | {"quantize": section}).quantize
    report = run_recipe(replace(settings, quantize=quantize), out)
    assert seen["tolerance"] == 0.3
    assert seen["scheme"] == hp.Scheme(weight_bits=8)
    data = open_run(settings, out, out).data
    assert (sum(len(labels) for _, labels in seen["validation"]), seen["images"]) == (
        len(data.validation),
        len(data.calibration),
    )
    assert report.notes[-1] == ("Layers of it left in FP32: conv1 (sensitivity 0.031: 62% of the loss of rounding).")
    assert report.settings["quantize"]["keep_fp32"] == "auto"
    with pytest.raises(ArgumentError, match="`tolerance` must be a number from 0 to 100, got -1"):
        replace(quantize, tolerance=-1)


def _test_batches(settings, out):
    return open_run(settings, out, out).batches("test")


SENTENCES = {
    "threads": 1,
    "data": {
        "source": "tsv",
        "root": "sst2",
        "validation_size": 10,
        "calibration_size": 12,
        "batch_size": 8,
        "max_length": 12,
        "sort": True,
    },
    "model": {"name": "hf:bert", "pretrain": {"epochs": 1, "lr": 1e-3, "optimizer": "adamw"}},
    "prune": {"budget": {"macs": 0.5}},
    "finetune": {"epochs": 1, "lr": 1e-3, "optimizer": "adamw", "checkpoint_every_steps": 1},
    "report": {"curve": [0.7], "latency_repeats": 2, "baselines": False},
}


def test_sentences_from_data_to_report(tmp_path, capsys):
    write_model(tmp_path / "bert")
    write_sentences(tmp_path / "sst2")
    settings, out = parse_recipe(SENTENCES), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), listening(Killer("training", 5)):  # of three steps twice
        run_recipe(settings, out, data_root=tmp_path)
    report = run_recipe(settings, out, data_root=tmp_path)
    dense, final = report.models["dense"], report.final
    assert 0.3 * dense.macs < final.macs <= 0.5 * dense.macs
    assert final.num_samples == report.data["test"] == 20
    assert report.data["noun"] == "sentence"
    assert any("of 12 tokens" in note for note in report.notes)
    assert "20 test sentences of sst2" in (out / "report.html").read_text("utf-8")
    print_report(report, out)
    assert "half the MACs" in capsys.readouterr().out

    run = open_run(settings, out, tmp_path)
    model = hp.load(out / "model", run.fresh_model)
    assert hp.evaluate(model, run.batches("test")).accuracy == final.accuracy
    for length in (5, 12):  # the file takes any batch and any length
        batch = {name: x[:, :length] for name, x in run.data.test.read(torch.arange(5), 12).items()}
        expected = model(**batch).logits
        torch.testing.assert_close(OnnxModel(out / "model.onnx")(**batch).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_folder_of_weights_needs_no_training_and_may_end_in_integers(tmp_path):
    write_model(tmp_path / "bert")
    write_sentences(tmp_path / "sst2")
    plain = {"model": {"name": "hf:bert"}, "finetune": {"epochs": 0}, "export": {"onnx": False}}
    plain |= {"prune": {"budget": {"macs": 0.6}, "method": "magnitude"}, "report": {"baselines": False, "curve": []}}
    plain |= {"quantize": {"train": {"epochs": 1}}}
    report = run_recipe(parse_recipe(SENTENCES | plain), tmp_path / "out", data_root=tmp_path)
    assert list(report.models) == ["dense", "pruned", "finetuned", "int8"]
    assert "pretrain" not in report.history
    batches = open_run(parse_recipe(SENTENCES | plain), tmp_path / "out", tmp_path).batches("test")
    assert evaluate(tmp_path / "out" / "int8.onnx", batches).accuracy == report.models["int8"].accuracy
    settings = parse_recipe(SENTENCES | plain | {"data": SENTENCES["data"] | {"tokenizer": "bert/tokenizer.json"}})
    assert open_run(settings, tmp_path / "out", tmp_path).data.fingerprint == report.data_fingerprint


@pytest.mark.slow
def test_a_language_model_goes_from_running_text_to_a_report_of_perplexity(tmp_path, capsys):
    recipe = {
        "threads": 1,
        "loss": "next_word",
        "data": {
            "source": "wikitext",
            "root": "wikitext2",
            "max_length": 8,
            "validation_size": 4,
            "calibration_size": 12,
            "test_size": 6,
            "batch_size": 6,
        },
        "model": {"name": "hf:llama"},
        "prune": {"budget": {"params": 0.85}, "sequential": True},
        "finetune": {"epochs": 1, "lr": 0.01, "optimizer": "adamw", "distill_weight": 0.5},
        "export": {"onnx": False},
        "report": {"curve": [0.9], "latency_repeats": 2},
    }
    write_decoder(tmp_path / "llama")
    write_text(tmp_path / "wikitext2")
    out = tmp_path / "out"
    report = run_recipe(parse_recipe(recipe), out, data_root=tmp_path)
    words = hp.evaluate(hp.load(out / "model"), words_of(recipe, tmp_path), metric="perplexity")
    assert report.final.perplexity == pytest.approx(words.metric)
    assert report.final.loss == pytest.approx(words.loss)
    history = report.history["finetune"]
    best = min(history, key=lambda epoch: epoch.validation_perplexity)
    assert report.validation["finetuned"] == pytest.approx(best.validation_perplexity)
    page = (out / "report.html").read_text("utf-8")
    assert "Perplexity against cost" in page
    assert "6 test texts of wikitext2" in page
    assert "Accuracy" not in page
    assert RunReport.load(out / "report.json") == report
    print_report(report, out)
    assert "Perplexity" in capsys.readouterr().out


def words_of(recipe, root):
    """Return the test sequences of a recipe."""
    return open_run(parse_recipe(recipe), root / "unused", root).batches("test")


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"budget": {"macs": 0.001}}, "must be reachable"),
        ({"budget": {"macs": 0.5}, "ranking": {"ignore": ["stage9.*"]}}, "'stage9.*'"),
    ],
)
def test_what_the_structure_refuses_is_refused_before_the_training(prune, message, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "finetune", lambda *args, **options: pytest.fail("trained"))
    with pytest.raises((BudgetError, ArgumentError), match=message):
        run_recipe(parse_recipe(TINY | {"prune": {"method": "magnitude"} | prune}), tmp_path)


def test_a_budget_out_of_reach_is_refused_before_scores_are_measured(finished, tmp_path):
    shutil.copytree(finished[0] / "stages" / "1-dense", tmp_path / "stages" / "1-dense")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages" / "1-dense").iterdir()}
    with pytest.raises(BudgetError, match="must be reachable"):
        run_recipe(parse_recipe(TINY | {"prune": {"method": "hap", "budget": {"macs": 0.001}}}), tmp_path)
    assert not list((tmp_path / "stages").rglob("saliency.safetensors"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "stages" / "1-dense").iterdir()} == before


def test_a_finished_run_is_not_checked_again(finished, settings, monkeypatch):
    monkeypatch.setattr(pruned, "check_reachable", lambda *args: pytest.fail("checked"))
    assert run_recipe(settings, finished[0]).settings == finished[1].settings
