"""A whole run on the digits, as small as it gets: resumed after a kill it ends as if nothing had happened."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.costs.budget import Budget
from hessprune.deploy.evaluation import evaluate
from hessprune.errors import ArgumentError, DataError, OutputError
from hessprune.foundation.progress import listening
from hessprune.lab import decisions, integers
from hessprune.lab.context import open_run
from hessprune.lab.models import build_model
from hessprune.lab.recipe import parse_recipe
from hessprune.lab.report import RunReport
from hessprune.lab.store import StageStore
from hessprune.lab.terminal import print_report
from hessprune.planning.implants import Implant
from hessprune.pruning import prune as pipeline

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
    return out, pipeline.run(settings, out)


def test_the_report_is_complete(finished):
    out, report = finished
    assert RunReport.load(out / "report.json") == report
    assert list(report.models) == ["dense", "pruned", "finetuned"]
    assert set(report.baselines) == {"magnitude-pruned", "random-pruned"}
    assert {point.method for point in report.curve} == {"hap", "magnitude", "random"}
    assert len(report.curve) == 3  # the second budget lies below the floors
    assert report.data["test"] == report.final.num_samples == 450
    assert report.models["pruned"].latency_ms > 0
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
    [("fine-tuning", 5), ("3-plan-random", 0), ("fine-tuning", 14)],  # while training, planning, fine-tuning
)
def test_a_killed_run_resumes_and_ends_the_same(finished, settings, tmp_path, label, step):
    _, expected = finished
    with pytest.raises(KeyboardInterrupt), listening(Killer(label, step)):
        pipeline.run(settings, tmp_path)
    assert not (tmp_path / "report.json").exists()
    assert _timeless(pipeline.run(settings, tmp_path)) == _timeless(expected)


def test_a_finished_run_is_only_read_again(finished, settings, monkeypatch):
    out, report = finished
    monkeypatch.setattr(pipeline.stages, "finetune", None)
    monkeypatch.setattr(decisions, "saliency", None)
    assert pipeline.run(settings, out) == report


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
    pipeline.run(changed, tmp_path / "run")
    assert made == ["5-finetuned-hap", "6-measured-finetuned", "7-latency", *(f"8-curve-{m}" for m in METHODS)]


METHODS = ("hap", "magnitude", "random")


def test_weights_from_a_file_and_no_baselines(finished, settings, tmp_path):
    out, first = finished
    weights = out / "stages" / "1-dense" / "model.safetensors"
    document = TINY | {"model": {"weights": str(weights)}, "report": {"baselines": False, "curve": []}}
    report = pipeline.run(parse_recipe(document | {"finetune": {"epochs": 0}}), tmp_path)
    assert report.models["dense"].accuracy == first.models["dense"].accuracy
    assert report.baselines == {}
    assert "pretrain" not in report.history


def test_wrong_output_and_missing_data_are_one_clear_error(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="output must be writable"):
        pipeline.run(settings, tmp_path / "file")
    absent = replace(settings, data=replace(settings.data, source="npz", root="absent.npz"))
    with pytest.raises(DataError, match=r"absent\.npz"):
        pipeline.run(absent, tmp_path / "out", data_root=tmp_path)


def test_prune_returns_a_smaller_model_and_leaves_the_argument_alone():
    model = build_model("digits-resnet", num_classes=10, in_channels=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10)]
    result = pipeline.prune(model, batches[0][0][:1], batches, budget=Budget(params=0.5), method="magnitude")
    assert result.cost_after.params <= result.cost_before.params / 2
    assert sum(parameter.numel() for parameter in result.model.parameters()) == result.cost_after.params
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(result.saliency) == {group.name for group in result.plan.groups}


def test_compensation_never_raises_the_calibration_loss(finished, settings):
    out, _ = finished
    run = open_run(settings, out, out)
    model, batches = pipeline.stages.dense_model(run).model, run.batches("calibration")
    plain, compensated = (
        pipeline.prune(model, run.example, batches, budget=Budget(macs=0.4), method="magnitude", compensate=flag)
        for flag in (False, True)
    )
    assert plain.plan.removed == compensated.plan.removed
    assert evaluate(compensated.model, batches).loss < evaluate(plain.model, batches).loss


def test_a_run_with_implants_shows_them_in_the_report(finished, settings, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    implant, plain = Implant(share=0.4), replace(settings.report, curve=(), baselines=False)
    finetune = replace(settings.finetune, epochs=0)
    changed = replace(settings, prune=replace(settings.prune, implant=implant), report=plain, finetune=finetune)
    report = pipeline.run(changed, tmp_path / "run")
    units = sum(sum(group.implanted) for group in report.saliency)
    assert units == sum(len(units) for units in report.plan["implanted"].values()) > 0
    assert all(layer.kept + layer.implanted <= layer.dense for layer in report.layers)
    assert any(layer.implanted for layer in report.layers)
    model = hp.load(tmp_path / "run" / "model", lambda: build_model("digits-resnet", num_classes=10, in_channels=1))
    assert hp.cost(model, torch.zeros(1, 1, 8, 8)).macs == report.final.macs
    print_report(report, tmp_path)
    assert f"{units} implanted" in capsys.readouterr().out


def test_prune_implants_what_the_plan_decides():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():  # most of what the filters see is at their centre
        for layer in (net[0], net[2]):
            layer.weight[..., 1, 1] *= 6
    x = torch.randn(40, 1, 8, 8)
    batches, options = [(x, net(x).argmax(1))], {"budget": Budget(macs=0.5), "method": "magnitude"}
    for implant in (0.5, Implant(share=0.5, rank=2), Implant(share=0.5, start="zero")):
        for step in (1.0, 0.3):
            result = pipeline.prune(net, x[:1], batches, implant=implant, step=step, **options)
            assert result.plan.num_implanted > 0
            assert hp.cost(result.model, x[:1]) == result.cost_after
            assert result.cost_after.macs <= 0.5 * result.cost_before.macs


def test_prune_refuses_what_it_cannot_do():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    batches = [(torch.zeros(2, 4), torch.zeros(2).long())]
    with pytest.raises(ArgumentError, match=r"`implant` must be 0 for this model, got 0.1: no unit has a plain conv"):
        pipeline.prune(net, x, batches, budget=Budget(macs=0.5), implant=0.1)
    with pytest.raises(ArgumentError, match=r"`implant` must be a number from 0 to 1, got 1.5"):
        pipeline.prune(net, x, batches, budget=Budget(macs=0.5), implant=1.5)
    with pytest.raises(ArgumentError, match=r"`method` must be one of"):
        pipeline.prune(net, x, batches, budget=Budget(macs=0.5), method="happ")
    with pytest.raises(DataError, match="one-shot"):
        pipeline.prune(net, x, iter(batches), budget=Budget(macs=0.5))


def _timeless(report):
    """A report without what is timed."""
    document = json.loads(json.dumps(report.to_json()))
    for result in (document["dense"], document["pruned"], document["finetuned"]):
        for key in ("latency_ms", "latency_p10_ms", "latency_p90_ms"):
            assert result.pop(key) > 0
    return document


def test_a_recipe_may_end_in_integers(settings, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)  # everything up to the fine-tuned model is done
    quantize = parse_recipe(TINY | {"quantize": {"train": {"epochs": 1, "checkpoint_every_steps": 2}}}).quantize
    wanted = replace(settings, quantize=quantize)
    assert wanted.quantize.train.lr == 1e-4
    with pytest.raises(KeyboardInterrupt), listening(Killer("calibrating", 1)):
        pipeline.run(wanted, out)
    report = pipeline.run(wanted, out)
    assert list(report.models) == ["dense", "pruned", "finetuned", "int8"]
    assert report.models["int8"].size_bytes == (out / "int8.onnx").stat().st_size
    assert report.models["int8"].accuracy == evaluate(out / "int8.onnx", _test_batches(wanted, out)).accuracy
    assert abs(report.models["int8"].accuracy - report.models["finetuned"].accuracy) < 0.05
    assert report.environment["latency_runtime"] == "onnxruntime"
    assert [point.epoch for point in report.history["quantize"]] == [0, 1]
    assert "INT8" in (out / "report.html").read_text("utf-8")
    assert report.notes[-1] == "Layers of it left in FP32: none."


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
    report = pipeline.run(replace(settings, quantize=quantize), out)
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


@pytest.mark.parametrize("budget", [0.5, "50%", {"macs": 0.5}])
def test_prune_wants_a_budget(budget):
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    with pytest.raises(ArgumentError, match=r"`budget` must be a Budget, got .*. Write budget=hp.Budget\(macs="):
        pipeline.prune(net, x, [(torch.zeros(2, 4), torch.zeros(2).long())], budget=budget)


def test_a_latency_beside_a_budget_of_macs_is_refused():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    batches = [(torch.zeros(2, 4), torch.zeros(2).long())]
    with pytest.raises(ArgumentError, match="`target` must come with `latency_ms`, got it beside `macs`"):
        pipeline.prune(net, x, batches, budget=Budget(macs=0.5), latency=hp.LatencyTarget())
