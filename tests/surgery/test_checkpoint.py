from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hessprune as hp
from hessprune.errors import ArgumentError, CheckpointError
from hessprune.planning.implants import Implant
from hessprune.planning.plan import Plan
from tests.cases import Plain, Residual, image, make

X = image()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Plan]:
    model = make(Plain)
    groups = hp.find_groups(model, X)
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    plan = hp.make_plan(model, groups, saliency, hp.Budget(macs=0.5), example_inputs=X)
    return hp.save(hp.apply_plan(model, plan), plan, tmp_path / "model"), plan


def test_no_pickle_is_written(saved: tuple[Path, Plan]) -> None:
    assert sorted(path.name for path in saved[0].iterdir()) == ["model.safetensors", "plan.json"]


def test_another_seed_of_the_factory_gives_the_same_model(saved: tuple[Path, Plan]) -> None:
    models = [hp.load(saved[0], lambda seed=seed: (torch.manual_seed(seed), Plain())[1].double()) for seed in (1, 2)]
    assert torch.equal(models[0](X), models[1](X))
    assert not models[0].training


def test_tensors_are_read_into_memory_of_their_own(tmp_path: Path) -> None:
    """A mapped tensor at an odd address takes another kernel, which sums in another order."""
    x = X.float()
    batches = [(x, torch.arange(len(x)))]
    result = hp.prune(make(Plain).float(), x, batches, budget=hp.Budget(macs=0.5), method="magnitude")
    again = hp.load(result.save(tmp_path), Plain)
    assert not any(tensor.data_ptr() % 16 for tensor in again.state_dict().values())
    assert torch.equal(again(x), result.model.eval()(x))


def test_the_layout_in_memory_is_that_of_the_factory(saved: tuple[Path, Plan]) -> None:
    model = hp.load(saved[0], lambda: Plain().to(memory_format=torch.channels_last))
    weights = [value for value in model.parameters() if value.dim() == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_files_are_one_clear_error(saved: tuple[Path, Plan], name: str, damage: str) -> None:
    path = saved[0] / name
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"complete|written by|that hp.save wrote"):
        hp.load(saved[0], Plain)


def test_a_flipped_byte_of_the_weights_is_refused(saved: tuple[Path, Plan]) -> None:
    path = saved[0] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors' must be as `hessprune.save` wrote it"):
        hp.load(saved[0], lambda: Plain().double())


def test_a_plan_of_another_model_of_the_same_shape_is_refused(saved: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = saved
    removed = {name: tuple((unit + 1) % 8 for unit in units) for name, units in plan.removed.items()}
    (folder / "plan.json").write_text(replace(plan, removed=removed).to_json())
    with pytest.raises(CheckpointError, match=r"plan.json' must be as .*is of another model: save the model again"):
        hp.load(folder, lambda: Plain().double())


def test_files_of_earlier_versions_hold_no_hashes(saved: tuple[Path, Plan]) -> None:
    path = saved[0] / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})
    assert not hp.load(saved[0], lambda: Plain().double()).training


def test_tensors_are_read_at_addresses_of_their_own(saved: tuple[Path, Plan]) -> None:
    model = hp.load(saved[0], lambda: Plain().double())
    assert not [name for name, value in model.named_parameters() if value.data_ptr() % 16]


def test_another_factory_is_refused(saved: tuple[Path, Plan]) -> None:
    with pytest.raises(CheckpointError, match="dense model that it was made for"):
        hp.load(saved[0], Residual)


@pytest.mark.parametrize("factory", [Plain().double(), 3])
def test_a_model_is_no_factory(saved: tuple[Path, Plan], factory: object) -> None:
    with pytest.raises(ArgumentError, match=r"must be a function .* got (Plain|int)\. Write hp\.load\(folder, la"):
        hp.load(saved[0], factory)  # type: ignore[arg-type]


def test_a_factory_that_returns_nothing_is_named(saved: tuple[Path, Plan]) -> None:
    with pytest.raises(ArgumentError, match=r"`factory` must return the dense model, .* got NoneType"):
        hp.load(saved[0], lambda: None)  # type: ignore[arg-type,return-value]


def test_a_model_with_other_tensors_is_refused(saved: tuple[Path, Plan]) -> None:
    class More(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.extra = torch.nn.Parameter(torch.zeros(1))

    with pytest.raises(CheckpointError, match="'extra' is missing"):
        hp.load(saved[0], More)


def plan_for(model: torch.nn.Module, implant: float | Implant = 0.0) -> Plan:
    groups = hp.find_groups(model, X)
    generator = torch.Generator().manual_seed(0)
    saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
    budget = hp.Budget(params=0.8)
    return hp.make_plan(model, groups, saliency, budget, example_inputs=X, implant=implant)


def test_a_plan_of_other_shapes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = make(Plain)
    first = plan_for(model)
    once = hp.apply_plan(model, first)
    second = plan_for(once)
    twice = hp.apply_plan(once, second)
    for wrong, plan in ((twice, first), (model, first), (make(Residual), first)):
        with pytest.raises(
            CheckpointError, match=r"but 'body.0.0.weight' must be \(.*\), got .*plan.then\(next_plan\)"
        ):
            hp.save(wrong, plan, tmp_path / "wrong")
        assert not (tmp_path / "wrong").exists()
    with pytest.raises(CheckpointError, match=r"has shape .*, and must have \d+ in dim 0"):
        hp.load(hp.save(twice, second, tmp_path / "between"), lambda: Plain().double())
    both = first.then(second)
    loaded = hp.load(hp.save(twice, both, tmp_path / "right"), lambda: Plain().double())
    assert torch.equal(loaded(X), twice(X))


@pytest.mark.parametrize("implant", [Implant(share=0.5), Implant(share=0.5, rank=2), Implant(share=1.0)])
def test_models_with_stand_ins_are_saved_with_their_plan_alone(tmp_path: Path, implant: Implant) -> None:
    model = make(Residual)
    plan = plan_for(model, implant)
    assert plan.num_implanted
    pruned = hp.apply_plan(model, plan)
    assert torch.equal(hp.load(hp.save(pruned, plan, tmp_path), lambda: Residual().double())(X), pruned(X))
    with pytest.raises(CheckpointError, match="must give the shapes of `model`"):
        hp.save(pruned, plan_for(model), tmp_path)


def test_another_head_can_be_saved(tmp_path: Path) -> None:
    """Axes that the plan does not touch may change, such as the number of classes."""
    model = make(Plain)
    plan = plan_for(model)
    pruned = hp.apply_plan(model, plan)
    pruned.head = torch.nn.Linear(pruned.head.in_features, 7).double()

    def factory() -> torch.nn.Module:
        dense = Plain().double()
        dense.head = torch.nn.Linear(dense.head.in_features, 7).double()
        return dense

    assert torch.equal(hp.load(hp.save(pruned, plan, tmp_path), factory)(X), pruned(X))


def test_plans_of_older_versions_are_saved_as_they_are(tmp_path: Path) -> None:
    model = make(Plain)
    plan = replace(plan_for(model), shapes={})
    pruned = hp.apply_plan(model, plan)
    hp.save(pruned, plan, tmp_path)
    assert torch.equal(hp.load(tmp_path, lambda: make(Plain))(X), pruned(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_numbers_that_no_state_holds_come_back_in_the_type_that_they_were_cast_to(tmp_path: Path, dtype) -> None:
    class Turned(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            self.register_buffer("angle", torch.tensor([0.1234567, 0.7654321]), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.angle.to(x.dtype).cos()

    model, x = Turned(), torch.randn(3, 4)
    result = hp.prune(model, x, [x], budget=hp.Budget(params=0.7), method="magnitude", compensate=False)
    smaller = result.model.to(dtype)
    again = hp.load(hp.save(smaller, result.plan, tmp_path), Turned)
    assert again.angle.dtype == dtype
    assert torch.equal(again(x.to(dtype)), smaller(x.to(dtype)))
