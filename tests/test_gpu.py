"""Every stage on a GPU: it takes the model where it lies, and gives what a processor gives.

TF32 is off wherever numbers are compared: torch rounds the inputs of convolutions to 10 bits by default.
"""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprune as hp
from hessprune.deploy.onnx_model import onnx_feed, onnx_session
from tests.quantize.nets import batches, images, network

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

METHODS = ("random", "magnitude", "bn_scale", "taylor", "nvit", "hap", "sosp-h", "sosp-i", "joint")


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Attention(nn.Module):
    """One block of a transformer: heads and hidden units to prune, LayerNorm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        q, k, v = (layer(self.norm(x)).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


def attention() -> nn.Module:
    torch.manual_seed(0)
    return Attention().eval()


def scores_on(device, model, method):
    model = copy.deepcopy(model).to(device)
    groups = hp.find_groups(model, images(2).to(device))
    scores = hp.saliency(model, groups, batches(), method)
    return torch.cat([scores[group].cpu().double() for group in groups]), scores


@pytest.mark.parametrize("name", ["resnet", "preresnet", "densenet", "inverted", "attention"])
@pytest.mark.parametrize("method", METHODS)
def test_saliencies_are_those_of_the_processor(method, name):
    if method == "bn_scale" and name in {"attention", "inverted"}:
        pytest.skip("its groups have no BatchNorm")
    model = attention() if name == "attention" else network(name)
    here, ours = scores_on("cpu", model, method)
    there, theirs = scores_on("cuda", model, method)
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3 * float(here.abs().max()))
    if isinstance(ours.interactions, torch.Tensor):
        whole = ours.interactions
        torch.testing.assert_close(theirs.interactions.cpu(), whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("estimator", ["exact", "rademacher", "hutchinson"])
@pytest.mark.parametrize("precision", ["fp64", "bf16", "fp16"])
def test_every_estimator_in_every_precision(precision, estimator):
    method = hp.HAP(estimator=estimator, num_probes=64 if estimator == "hutchinson" else None, precision="fp64")
    here, _ = scores_on("cpu", network("resnet"), method)
    there, _ = scores_on("cuda", network("resnet"), replace(method, precision=precision))
    assert float((there - here).norm() / here.norm()) < {"fp64": 1e-6, "bf16": 0.1, "fp16": 0.03}[precision]


def test_a_memory_limit_changes_nothing():
    method = hp.HAP(estimator="hutchinson", num_probes=20, precision="fp64")
    whole, _ = scores_on("cuda", network("resnet"), method)
    limited, _ = scores_on("cuda", network("resnet"), replace(method, memory_limit=64 << 20))
    torch.testing.assert_close(limited, whole)


@pytest.mark.parametrize("name", ["resnet", "densenet", "inverted", "attention"])
@pytest.mark.parametrize("method", ["hap", "joint"])
def test_pruning_on_a_gpu_ends_where_pruning_on_a_processor_ends(method, name, tmp_path):
    model = attention() if name == "attention" else network(name)
    here = hp.prune(model, images(2), batches(), budget=hp.Budget(macs=0.6), method=method)
    there = hp.prune(copy.deepcopy(model).cuda(), images(2), batches(), budget=hp.Budget(macs=0.6), method=method)
    assert there.cost_after.macs == pytest.approx(here.cost_after.macs, rel=0.01)
    assert {p.device.type for p in there.model.parameters()} == {"cuda"}
    expected, found = here.model(images(8)), there.model(images(8).cuda()).cpu()
    if there.plan.removed == here.plan.removed:  # a tie may end either way
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.detach().abs().max()))
    hp.save(there.model, there.plan, tmp_path)
    for device in ("cpu", "cuda"):
        again = hp.load(tmp_path, lambda: attention() if name == "attention" else network(name), device=device)
        torch.testing.assert_close(again(images(8).to(device)).cpu(), found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("start", ["fitted", "zero"])
def test_implants_on_a_gpu(start):
    implant = hp.Implant(share=0.3, start=start)
    model, budget = network("resnet").cuda(), hp.Budget(macs=0.6)
    result = hp.prune(model, images(2).cuda(), batches(), budget=budget, implant=implant)
    assert result.plan.implanted
    tuned = hp.finetune(result.model, batches(), batches(), config=hp.FinetuneConfig(epochs=1, lr=0.01))
    assert {p.device.type for p in tuned.model.parameters()} == {"cuda"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fine_tuning_with_a_teacher(precision):
    model = network("resnet").cuda()
    pruned = hp.prune(model, images(2), batches(), budget=hp.Budget(macs=0.5)).model
    config = hp.FinetuneConfig(epochs=2, lr=0.02, precision=precision, distill_weight=0.5)
    result = hp.finetune(pruned, batches(), batches(), config=config, teacher=model)
    assert {p.device.type for p in result.model.parameters()} == {"cuda"}
    assert result.history[result.best_epoch].validation_loss <= result.history[0].validation_loss


def test_files_and_latencies_of_a_model_on_a_gpu(tmp_path):
    model = network("resnet").cuda()
    path = hp.export_onnx(model, images(2), tmp_path / "model.onnx")
    session = onnx_session(path)
    found = torch.from_numpy(session.run(None, onnx_feed(session, images(3)))[0])
    torch.testing.assert_close(found, model(images(3).cuda()).cpu(), rtol=1e-3, atol=1e-4)
    assert hp.measure_latency(model, images(2), repeats=3).device == "cuda"
    both = hp.compare_latency({"torch": model, "onnx": path}, images(2), repeats=3)
    assert both["torch"].median_ms > 0
    assert both["onnx"].median_ms > 0


def test_a_budget_of_time_on_a_gpu():
    target = hp.LatencyTarget(repeats=3, batch_size=64)
    model = network("resnet").cuda()
    table = hp.latency_table(model, hp.find_groups(model, images(2).cuda()), images(2), target)
    assert 0 < table.ms(dict.fromkeys(table.groups, 4)) <= 1.2 * table.dense_ms  # launches take longer than layers


def test_rounding_on_a_gpu_is_that_of_the_processor(tmp_path):
    pytest.importorskip("torchao")
    here = hp.calibrate(hp.prepare_qat(network("resnet"), images(2)), batches())
    there = hp.calibrate(hp.prepare_qat(network("resnet").cuda(), images(2)), batches())
    expected = here(images(8))
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(there(images(8).cuda()).cpu(), expected, rtol=0, atol=0.05 * scale)
    tuned = hp.finetune(there, batches(), batches(), config=hp.FinetuneConfig(epochs=1, lr=0.001)).model
    int8 = hp.convert_qat(tuned)
    path = hp.export_onnx(int8, images(2), tmp_path / "int8.onnx")
    session = onnx_session(path)
    found = torch.from_numpy(session.run(None, onnx_feed(session, images(64, 5)))[0])
    difference = (found - int8(images(64, 5).cuda()).cpu()).abs()
    assert float(difference.median()) <= float(found.max() - found.min()) / 255
    sensitivities = hp.quantization_sensitivity(network("resnet").cuda(), images(2), batches())
    assert sensitivities


def test_a_whole_run_on_a_gpu(tmp_path):
    pytest.importorskip("sklearn")
    from hessprune.lab.recipe import parse_recipe
    from hessprune.pruning import prune as pipeline

    recipe = {
        "device": "cuda",
        "data": {"validation_size": 60, "calibration_size": 64, "batch_size": 128},
        "model": {"pretrain": {"epochs": 2, "lr": 0.1}},
        "prune": {"method": "joint", "budget": {"macs": 0.5}},
        "finetune": {"epochs": 1, "lr": 0.05},
        "report": {"curve": [0.7], "latency_repeats": 2},
    }
    report = pipeline.run(parse_recipe(recipe), tmp_path)
    assert list(report.models)[:3] == ["dense", "pruned", "finetuned"]
    assert report.environment["accelerator"] == torch.cuda.get_device_name()
