"""Inputs of any kind have a description in JSON; those of a class of the user's are described, not made again."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.planning.inputs import InputSpec, check_tree, describe_inputs
from tests.provoking import HALF, Net, X, Y


@dataclasses.dataclass
class Features:
    """The input of a model."""

    values: Tensor
    scale: float = 1.0


@dataclasses.dataclass
class Unregistered:
    """Another one, into which torch cannot look."""

    values: Tensor


torch.export.register_dataclass(Features)


class OfFeatures(Net):
    """Two layers that read a dataclass."""

    def forward(self, x: Features) -> Tensor:  # type: ignore[override]
        return super().forward(x.values * getattr(x, "scale", 1.0))


def lazy() -> nn.Module:
    net = OfFeatures()
    net.a = nn.LazyLinear(8)
    return net


@pytest.mark.parametrize("inputs", [X, (X, None), {"x": X, "n": 3}, (Features(X), "mean"), [X, {"y": (Y,)}]])
def test_descriptions_are_json(inputs: object) -> None:
    tree = describe_inputs(inputs).tree
    assert check_tree(json.loads(json.dumps(tree))) == tree


def test_inputs_of_the_described_shapes_are_taken_as_they_are() -> None:
    spec, other = describe_inputs((Features(X), None)), (Features(X[:3]), None)
    assert spec.like(given := (Features(X + 1), None)) is given
    assert spec.like(other)[0].values.shape == X.shape
    assert describe_inputs(X).like({"x": X[:2], "y": X}).shape == X.shape


@pytest.mark.parametrize("inputs", [Features(X), (Features(X),)])
@pytest.mark.parametrize("batch", [Features(X), (Features(X), Y), (Features(X),)])
def test_a_model_of_a_dataclass_is_pruned_saved_and_loaded(inputs: object, batch: object, tmp_path: Path) -> None:
    net = OfFeatures()
    result = hp.prune(net, inputs, [batch], budget=HALF, method="magnitude", compensate=False)
    assert hp.Plan.from_json(result.plan.to_json()) == result.plan
    hp.save(result.model, result.plan, tmp_path)
    assert torch.equal(hp.load(tmp_path, OfFeatures)(Features(X)), result.model(Features(X)))
    again = hp.apply_plan(net, result.plan, example_inputs=Features(X[:5]))
    assert hp.verify(net, again, result.plan, Features(X)) < 1e-9


def test_inputs_of_a_class_must_be_given() -> None:
    plan = hp.prune(OfFeatures(), Features(X), [Features(X)], budget=HALF, method="magnitude", compensate=False).plan
    with pytest.raises(ArgumentError, match=r"describes them as 'Features', a class of yours, got None\. Pass a batch"):
        hp.apply_plan(OfFeatures(), plan)
    assert hp.apply_plan(OfFeatures(), plan, example_inputs=Features(X)).a.out_features == 4


def test_a_lazy_model_of_a_class_is_run_by_its_factory(tmp_path: Path) -> None:
    net = lazy()
    net(Features(X))
    result = hp.prune(net, Features(X), [Features(X)], budget=HALF, method="magnitude", compensate=False)
    hp.save(result.model, result.plan, tmp_path)
    with pytest.raises(ArgumentError, match="run one through a lazy model in the factory"):
        hp.load(tmp_path, lazy)

    def run() -> nn.Module:
        made = lazy()
        made(Features(X))
        return made

    assert hp.load(tmp_path, run).a.out_features == 4


def test_dataclasses_that_torch_does_not_know_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Call torch.export.register_dataclass\(Unregistered\) once"):
        hp.find_groups(OfFeatures(), Unregistered(X))


def test_a_description_of_integers_is_drawn_below_the_largest() -> None:
    assert InputSpec(tree=describe_inputs(Y).tree).example().max() <= Y.max()


def test_a_dataclass_of_outputs_that_is_not_registered_is_named():
    @dataclasses.dataclass
    class Answer:
        logits: torch.Tensor

    class Answering(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return Answer(self.leave(self.enter(x).relu()))

    with pytest.raises(UnsupportedModelError, match=r"dataclasses of outputs must be registered .*\(Answer\) once"):
        hp.find_groups(Answering(), torch.zeros(2, 6))
