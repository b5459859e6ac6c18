import copy
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError, CheckpointError, VerificationError
from hessprune.planning.plan import Plan
from hessprune.surgery import apply as apply_module
from hessprune.surgery.slicing import slice_units
from tests.cases import Plain, Residual, Shared, image, make

X = image()


def plan_for(model: nn.Module, fraction: float = 0.5) -> Plan:
    groups = hp.find_groups(model, X)
    generator = torch.Generator().manual_seed(3)
    saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
    return hp.make_plan(model, groups, saliency, hp.Budget(macs=fraction), example_inputs=X)


def test_the_argument_is_untouched_and_the_result_is_independent() -> None:
    model = make(Residual).train()
    before = copy.deepcopy(model.state_dict())
    pruned = hp.apply_plan(model, plan_for(model))
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert pruned.training


def test_module_attributes_follow() -> None:
    pruned = hp.apply_plan(make(Plain), plan_for(make(Plain)))
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        if isinstance(module, nn.BatchNorm2d):
            assert len(module.running_mean) == len(module.weight) == module.num_features
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(12), nn.BatchNorm2d(12, affine=False, track_running_stats=False)])
def test_norms_without_tensors_follow(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.ReLU(), nn.Conv2d(12, 4, 3)).double()
    pruned = hp.apply_plan(model, plan_for(model))
    assert pruned[1].num_features == pruned[0].out_channels < 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned(X)


def test_a_norm_without_tensors_may_have_several_widths() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Conv2d(12, 4, 1)
            self.norm = nn.InstanceNorm2d(12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.norm(self.b(self.norm(self.a(x)))))

    groups = hp.find_groups(Twice(), X.float())
    assert [(group.num_units, group.literals) for group in groups] == [(12, ()), (12, ())]


def test_the_pruned_model_trains_copies_and_keeps_flags() -> None:
    model = make(Residual)
    model.stem[0].weight.requires_grad_(False)
    pruned = copy.deepcopy(hp.apply_plan(model, plan_for(model))).train()
    pruned(X).sum().backward()
    assert pruned.stem[0].weight.grad is None
    assert pruned.head.weight.grad is not None


def test_shared_parameters_stay_shared() -> None:
    model = make(Shared)
    pruned = hp.apply_plan(model, plan_for(model))
    assert pruned.left.weight is pruned.right.weight


def test_keeping_everything_is_bit_identical() -> None:
    model = make(Residual)
    pruned = hp.apply_plan(model, plan_for(model, 1.0))
    assert torch.equal(pruned(X), model(X))


def test_the_order_of_removals_does_not_matter() -> None:
    model = make(Residual)
    plan = plan_for(model)
    together, singly = copy.deepcopy(model), copy.deepcopy(model)
    slice_units(together, plan.groups, plan.removed)
    slice_units(singly, plan.groups[::-1], {name: units[::-1] for name, units in plan.removed.items()})
    assert all(
        torch.equal(a, b) for a, b in zip(together.state_dict().values(), singly.state_dict().values(), strict=True)
    )


def test_pruning_twice_works() -> None:
    once = hp.apply_plan(make(Residual), plan_for(make(Residual), 0.7))
    twice = hp.apply_plan(once, plan_for(once, 0.6))
    assert hp.cost(twice, X).macs < hp.cost(once, X).macs


def test_a_plan_for_another_model_is_refused_with_a_list() -> None:
    with pytest.raises(CheckpointError, match=r"made for, but 'body.0.0.weight' is missing; .* in all\)"):
        hp.apply_plan(make(Residual), plan_for(make(Plain)))
    pruned = hp.apply_plan(make(Plain), plan_for(make(Plain)))
    with pytest.raises(CheckpointError, match="too small in dim"):
        hp.apply_plan(pruned, plan_for(make(Plain)))
    wider = make(Plain)
    wider.body[0][0] = nn.Conv2d(3, 9, 3).double()
    with pytest.raises(CheckpointError, match=r"'body.0.0.weight' has shape \(9, 3, 3, 3\), and must have 8 in dim 0"):
        hp.apply_plan(wider, plan_for(make(Plain)))


@pytest.mark.parametrize(("name", "unit"), [(None, 99), (None, -1), ("nowhere", 0)])
def test_units_that_a_group_does_not_have_are_refused(name: str | None, unit: int) -> None:
    model, plan = make(Plain), plan_for(make(Plain))
    wrong = replace(plan, removed={name or plan.groups[0].name: (unit,)})
    with pytest.raises(ArgumentError, match=rf"`plan\.removed` must hold units of .* got {unit} in '.*', which has "):
        hp.apply_plan(model, wrong)


def test_wrong_surgery_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut one unit too many to the left: the verification must refuse."""
    model = make(Plain)
    plan = plan_for(model)

    def careless(pruned: nn.Module, groups: object, removed: dict[str, tuple[int, ...]]) -> None:
        shifted = {
            name: [(unit + 1) % 8 for unit in units] if name == "body.0.0" else units for name, units in removed.items()
        }
        slice_units(pruned, groups, shifted)

    monkeypatch.setattr(apply_module, "slice_units", careless)
    with pytest.raises(VerificationError, match="must equal the masked dense model"):
        hp.apply_plan(model, plan)


def test_a_model_that_counts_channels_is_caught() -> None:
    class Counting(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.body(x)
            return self.head(features.mean((2, 3)) / features.shape[1])

    model = make(Counting)
    with pytest.raises(VerificationError, match="treats channels by position"):
        hp.apply_plan(model, plan_for(make(Plain)))


def test_single_precision_models_that_insist_on_it_are_verified_in_it() -> None:
    class Insisting(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return super().forward(x)

    model, x = make(Insisting).float(), X.float()
    groups = hp.find_groups(model, x)
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    plan = hp.make_plan(model, groups, saliency, hp.Budget(macs=0.5), example_inputs=x)
    assert hp.verify(model, hp.apply_plan(model, plan), plan) < 1e-5


def test_saved_models_come_back_bit_for_bit_in_a_new_process(tmp_path: object) -> None:
    model = make(Shared).float()
    x = X.float()
    groups = hp.find_groups(model, x)
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    plan = hp.make_plan(model, groups, saliency, hp.Budget(params=0.6), example_inputs=x)
    pruned = hp.apply_plan(model, plan).eval()
    hp.save(pruned, plan, tmp_path)
    torch.save({"x": x, "y": pruned(x).detach()}, tmp_path / "expected.pt")
    program = (
        "import pathlib, sys, torch, hessprune as hp; from tests.cases import Shared\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "kept = torch.load(folder / 'expected.pt', weights_only=True); model = hp.load(folder, Shared)\n"
        "assert model.left.weight is model.right.weight\n"
        "print(torch.equal(model(kept['x']), kept['y']))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
