from pathlib import Path

import pytest
import torch

import hessprune as hp
from hessprune.errors import CheckpointError
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


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_files_are_one_clear_error(saved: tuple[Path, Plan], name: str, damage: str) -> None:
    path = saved[0] / name
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"complete|written by"):
        hp.load(saved[0], Plain)


def test_another_factory_is_refused(saved: tuple[Path, Plan]) -> None:
    with pytest.raises(CheckpointError, match="dense model that it was made for"):
        hp.load(saved[0], Residual)


def test_a_model_with_other_tensors_is_refused(saved: tuple[Path, Plan]) -> None:
    class More(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.extra = torch.nn.Parameter(torch.zeros(1))

    with pytest.raises(CheckpointError, match="'extra' is missing"):
        hp.load(saved[0], More)
