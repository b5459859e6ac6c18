"""The public functions give the same inside of `torch.inference_mode`, where others call them from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp

HALF = hp.Budget(macs=0.6)


def net() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 3, 8, 8), torch.arange(16) % 3) for _ in range(2)]


def planned(model: nn.Module, batches: list[Any]) -> hp.Plan:
    x, groups = batches[0][0][:1], hp.find_groups(model, batches[0][0][:1])
    return hp.make_plan(model, groups, hp.saliency(model, groups, batches, "magnitude"), HALF, example_inputs=x)


def loaded(model: nn.Module, batches: list[Any], folder: Path) -> Any:
    plan = planned(model, batches)
    hp.save(hp.apply_plan(model, plan), plan, folder)
    return hp.load(folder, net)


def written(model: nn.Module, batches: list[Any], folder: Path) -> Any:
    pytest.importorskip("onnxscript")
    return hp.export_onnx(model, batches[0][0][:1], folder / "net.onnx").exists()


def quantized(model: nn.Module, batches: list[Any]) -> Any:
    pytest.importorskip("torchao")
    return hp.convert_qat(hp.calibrate(hp.prepare_qat(model, batches[0][0][:1]), batches)).stage


CALLS: dict[str, Callable[[nn.Module, list[Any], Path], Any]] = {
    "cost": lambda model, batches, _: hp.cost(model, batches[0][0][:1]),
    "plan": lambda model, batches, _: planned(model, batches),
    "saliency": lambda model, batches, _: planned(model, batches).removed,
    "verify": lambda model, batches, _: hp.verify(
        model, hp.apply_plan(model, plan := planned(model, batches)), plan, batches[0][0][:1]
    ),
    "compensate": lambda model, batches, _: hp.compensate(
        model, hp.apply_plan(model, plan := planned(model, batches)), plan, batches
    ),
    "prune": lambda model, batches, _: hp.prune(model, batches[0][0][:1], batches, budget=HALF).model,
    "measure": lambda model, batches, _: (
        hp.prune(
            model, batches[0][0][:1], batches, budget=HALF, stats=hp.measure(model, batches[0][0][:1], batches)
        ).model
    ),
    "bottlenecks": lambda model, batches, _: hp.find_bottlenecks(model, batches[0][0][:1], batches),
    "widen": lambda model, batches, _: hp.widen(model, batches[0][0][:1], {"0": 12}).plan,
    "reallocate": lambda model, batches, _: hp.reallocate(model, batches[0][0][:1], batches).plan,
    "finetune": lambda model, batches, _: (
        hp.finetune(model, batches, batches, config=hp.FinetuneConfig(epochs=1)).model
    ),
    "evaluate": lambda model, batches, _: hp.evaluate(model, batches),
    "batchnorm": lambda model, batches, _: hp.reestimate_batchnorm(model, batches),
    "load": loaded,
    "onnx": written,
    "integers": lambda model, batches, _: quantized(model, batches),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("made_inside", [False, True])
def test_inference_mode_changes_no_result(name: str, made_inside: bool, tmp_path: Path) -> None:
    model, batches, call = net(), data(), CALLS[name]
    wanted = call(net(), data(), tmp_path)
    with torch.inference_mode():
        found = call(net(), data(), tmp_path) if made_inside else call(model, batches, tmp_path)
    if isinstance(wanted, nn.Module):
        assert str(found) == str(wanted)
        wanted, found = wanted.state_dict(), found.state_dict()
        torch.testing.assert_close(dict(found), dict(wanted))
    else:
        assert found == wanted
