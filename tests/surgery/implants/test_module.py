"""Implanted models: the dense model with stand-ins for filters, at the predicted cost, and otherwise like any other."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.planning.implants import Implant
from hessprune.planning.plan import Plan
from hessprune.planning.planner import plan_removing
from hessprune.structure.carriers import stand_in_layers
from hessprune.surgery import apply as apply_module
from hessprune.surgery.implants.module import Implanted, factors, insert_stand_ins
from tests.cases import AWKWARD, ChunkCat, Flatten, Plain, Residual, Shared, image, make, paper_model
from tests.test_theorems import counted_macs

X = image()


def plan_for(model: nn.Module, x: Tensor, implant: Implant, seed: int = 0) -> Plan:
    groups = hp.find_groups(model, x)
    generator = torch.Generator().manual_seed(seed)
    saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
    return hp.make_plan(model, groups, saliency, hp.Budget(params=0.75), example_inputs=x, implant=implant)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("case", AWKWARD, ids=lambda case: case.__name__)
def test_stand_ins_equal_filters_and_cost_what_was_predicted(case: type[nn.Module], rank: int | None) -> None:
    """`apply_plan` verifies outputs to 1e-9 and MACs, parameters and bytes; here torch's own counter, and 1e-12."""
    model = make(case)
    if not stand_in_layers(model, hp.find_groups(model, X), X, rank=rank):
        with pytest.raises(hp.errors.ArgumentError, match="no unit has a plain convolution"):
            plan_for(model, X, Implant(share=0.7, rank=rank))
        return
    plans = (plan_for(model, X, Implant(share=0.7, rank=rank), seed) for seed in range(9))
    plan = next(plan for plan in plans if plan.num_implanted)
    pruned = hp.apply_plan(model, plan)
    assert hp.verify(model, pruned, plan) < 1e-12
    assert counted_macs(pruned, X) == plan.cost_after.macs
    assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.cost_after.params


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "resnet20-b",
        pytest.param("densenet40", marks=pytest.mark.slow),
        "mobilenet-tiny",
        "vgg16-bn",
        "preresnet29",
    ],
)
def test_the_papers_networks(name: str) -> None:
    model, x = paper_model(name)
    plan = plan_for(model, x, Implant(share=0.3))
    pruned = hp.apply_plan(model, plan, check=False)
    assert plan.num_implanted > 0
    assert hp.cost(pruned, x) == plan.cost_after


def test_a_linear_layer_of_a_given_rank() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    plan = plan_for(model, x, Implant(share=0.8, rank=2))
    pruned = hp.apply_plan(model, plan)
    layer = pruned[0]
    assert isinstance(layer, Implanted)
    assert layer.base.weight.shape == (2, 6)
    assert counted_macs(pruned, x) == plan.cost_after.macs


def test_filters_by_hand() -> None:
    """One convolution: kept rows in front, implanted rows behind, each with the centre of its filter."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    groups = hp.find_groups(model, x)
    facts = {"example_inputs": x, "provenance": {}}
    plan = plan_removing(model, groups, {"0": (1,)}, hp.Budget(macs=0.9), implanted={"0": (0,)}, **facts)
    layer, reader = hp.apply_plan(model, plan)[0], hp.apply_plan(model, plan)[2]
    assert torch.equal(layer.parts[0].weight, model[0].weight[[2, 3]])
    assert torch.equal(layer.parts[1].weight, model[0].weight[[0], :, 1:2, 1:2])
    assert torch.equal(layer.parts[1].bias, model[0].bias[[0]])
    assert torch.equal(reader.weight, model[2].weight[:, [2, 3, 0]])
    assert hp.apply_plan(model, plan, start="zero")[0].parts[1].weight.abs().sum() == 0


def test_verification_sees_a_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_module, "arrange_units", lambda *_: None)
    model = make(Plain)
    with pytest.raises(hp.errors.VerificationError, match="must equal the masked dense model"):
        hp.apply_plan(model, plan_for(model, X, Implant(share=0.5)))


def test_verification_sees_a_wrong_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias of an implanted unit must come along."""

    def careless(pruned: nn.Module, *args: object, **options: object) -> None:
        insert_stand_ins(pruned, *args, **options)
        for module in pruned.modules():
            if isinstance(module, Implanted):
                module.parts[0].weight.data.mul_(1.01)

    monkeypatch.setattr(apply_module, "insert_stand_ins", careless)
    model = make(Residual)
    with pytest.raises(hp.errors.VerificationError, match="must equal the masked dense model"):
        hp.apply_plan(model, plan_for(model, X, Implant(share=0.5)))


@pytest.mark.parametrize("options", [{"padding": 0}, {"padding": 2, "dilation": 2}, {"padding": 3, "stride": 2}])
def test_any_geometry(options: dict[str, int]) -> None:
    for kernel in (2, 3, 4):
        model = nn.Sequential(nn.Conv2d(3, 6, kernel, **options), nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
        x = image(size=11)
        pruned = hp.apply_plan(model, plan := plan_for(model, x, Implant(share=0.6)))
        assert hp.verify(model, pruned, plan) < 1e-12


def test_the_argument_stays_and_the_result_trains_and_copies() -> None:
    model = make(Residual)
    before = copy.deepcopy(model.state_dict())
    model.stem[0].weight.requires_grad_(False)
    pruned = copy.deepcopy(hp.apply_plan(model, plan_for(model, X, Implant(share=0.5)))).train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruned(X).sum().backward()
    kept, small = pruned.stem[0].parts
    assert kept.weight.grad is small.weight.grad is None
    assert pruned.outer.parts[1].weight.grad is not None


def test_implanted_models_can_be_pruned_and_implanted_again() -> None:
    model = make(Residual)
    once = hp.apply_plan(model, plan_for(model, X, Implant(share=0.5)))
    assert "stand_in=(False, True" in repr(once)
    plan = plan_for(once, X, Implant(share=0.4), seed=1)
    twice = hp.apply_plan(once, plan)
    assert plan.num_implanted > 0
    assert hp.verify(once, twice, plan) < 1e-12
    assert hp.cost(twice, X).macs < hp.cost(once, X).macs


def test_units_with_several_positions_move_together() -> None:
    for case in (ChunkCat, Flatten):
        model = make(case)
        pruned = hp.apply_plan(model, plan := plan_for(model, X, Implant(share=0.5, rank=1)))
        assert hp.verify(model, pruned, plan) < 1e-12


def test_implanted_models_come_back_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    model, x = make(Shared).float(), X.float()
    pruned = hp.apply_plan(model, plan := plan_for(model, x, Implant(share=0.5))).eval()
    hp.save(pruned, plan, tmp_path)
    torch.save({"x": x, "y": pruned(x).detach()}, tmp_path / "expected.pt")
    program = (
        "import pathlib, sys, torch, hessprune as hp; from tests.cases import Shared\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "kept = torch.load(folder / 'expected.pt', weights_only=True); model = hp.load(folder, Shared)\n"
        "print(torch.equal(model(kept['x']), kept['y']), type(model.twice).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "Implanted"]


@pytest.mark.parametrize("rank", [None, 2])
def test_onnx_has_plain_convolutions(tmp_path: Path, rank: int | None) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, x = make(Residual).float(), X.float()
    pruned = hp.apply_plan(model, plan_for(model, x, Implant(share=0.5, rank=rank))).eval()
    path = hp.export_onnx(pruned, x, tmp_path / "model.onnx")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"Conv", "Concat"} <= operators
    assert not operators & {"Gather", "GatherElements", "ScatterND", "Split"}


def test_factors_of_a_small_matrix() -> None:
    matrix = torch.randn(5, 3, dtype=torch.float64)
    heads, base = factors(matrix, 4)
    assert (heads.shape, base.shape) == ((5, 4), (4, 3))
    torch.testing.assert_close(heads @ base, matrix)
    heads, base = factors(matrix, 1)
    assert (matrix - heads @ base).norm() == pytest.approx(float(torch.linalg.svdvals(matrix)[1:].norm()))
