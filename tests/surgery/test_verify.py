"""Verification where outputs are not finite, or become so by masking."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import VerificationError
from hessprune.planning.plan import Plan


class Standardised(nn.Module):
    """A stored deviation divides the channels: masked to zero, it makes outputs NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.register_buffer("mean", torch.randn(1, 8, 1, 1))
        self.register_buffer("std", torch.rand(1, 8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x) - self.mean) / self.std
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class CountsToo(Standardised):
    """The width stands in the source code as well, so slicing is wrong here."""

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x) - self.mean) / self.std
        x = x / math.sqrt(x.shape[1])
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Logarithm(nn.Module):
    """NaN wherever the input is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.log())


def plan_for(model: nn.Module, x: Tensor) -> Plan:
    groups = hp.find_groups(model, x)
    saliency = {group.name: torch.arange(float(group.num_units)) for group in groups}
    return hp.make_plan(model, groups, saliency, hp.Budget(units=0.7), example_inputs=x)


def example(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_masked_divisor_does_not_make_the_check_vacuous() -> None:
    torch.manual_seed(0)
    x = example(2, 3, 8, 8)
    model = Standardised().eval()
    plan = plan_for(model, x)
    assert plan.removed["first"]
    assert hp.verify(model, hp.apply_plan(model, plan), plan, x) < 1e-12


def test_a_wrong_model_is_refused_though_masking_gives_nan() -> None:
    torch.manual_seed(0)
    x = example(2, 3, 8, 8)
    plan = plan_for(Standardised().eval(), x)
    with pytest.raises(VerificationError, match="must equal the masked dense model"):
        hp.apply_plan(CountsToo().eval(), plan, example_inputs=x)


def test_outputs_that_are_nan_everywhere_prove_nothing() -> None:
    model, x = Logarithm(), example(2, 4).abs()
    plan = plan_for(model, x)
    with pytest.raises(VerificationError, match=r"not finite on these inputs.*Pass example_inputs"):
        hp.apply_plan(model, plan, example_inputs=-x)
    hp.apply_plan(model, plan, example_inputs=x)


def test_made_up_inputs_are_positive_where_others_give_nan() -> None:
    model = Logarithm()
    plan = plan_for(model, torch.ones(2, 4))
    pruned = hp.apply_plan(model, plan)
    with torch.no_grad():
        pruned.body[0].weight.add_(1.0)
    with pytest.raises(VerificationError, match="must equal the masked dense model"):
        hp.verify(model, pruned, plan)


@dataclass(slots=True)
class Detections:
    scores: Tensor
    count: int


class Returning(nn.Module):
    """Returns its result in some form; `fault` is added to the result of one width."""

    def __init__(self, form, fault: float = 0.0) -> None:
        super().__init__()
        self.first, self.head, self.form = nn.Linear(4, 8), nn.Linear(8, 3), form
        self.fault = fault

    def forward(self, x: Tensor) -> object:
        x = self.first(x)
        return self.form(self.head(torch.relu(x)) + (self.fault if x.shape[1] < 8 else 0.0))


def classes(x: Tensor) -> Tensor:
    return (x * 1000).round().long()


FORMS = {
    "integers": classes,
    "dataclass": lambda x: Detections(x, len(x)),
    "dict of dicts": lambda x: {"a": {"b": (x,)}, "step": 1},
    "attributes": lambda x: SimpleNamespace(scores=x, names=["a", None]),
    "complex": lambda x: torch.complex(torch.zeros_like(x), x),
    "sparse": lambda x: x.to_sparse(),
    "small beside large": lambda x: (x, torch.full((1,), 1e12)),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_any_form_are_compared(form: str) -> None:
    torch.manual_seed(0)
    model, x = Returning(lambda x: x), example(2, 4)
    plan = plan_for(model, x)
    model.form = FORMS[form]
    hp.apply_plan(model, plan, example_inputs=x)
    model.fault = 0.1
    with pytest.raises(VerificationError, match="must equal the masked dense model"):
        hp.apply_plan(model, plan, example_inputs=x)


def test_another_structure_of_outputs_is_a_difference() -> None:
    torch.manual_seed(0)
    model, x = Returning(lambda x: x), example(2, 4)
    plan = plan_for(model, x)
    pruned = hp.apply_plan(model, plan)
    model.form, pruned.form = (lambda x: {"a": x}), (lambda x: {"b": x})
    with pytest.raises(VerificationError, match="differs by inf"):
        hp.verify(model, pruned, plan, x)


@pytest.mark.parametrize(("form", "rows"), [(lambda _: "done", 2), (lambda x: x, 0)])
def test_outputs_without_numbers_prove_nothing(form, rows: int) -> None:
    model, x = Returning(lambda x: x), example(2, 4)
    plan = plan_for(model, x)
    model.form = form
    with pytest.raises(VerificationError, match="must return tensors with numbers"):
        hp.apply_plan(model, plan, example_inputs=x[:rows])


def test_nan_in_the_pruned_model_alone_is_a_difference() -> None:
    model, x = Returning(lambda x: x), example(2, 4)
    plan = plan_for(model, x)
    model.fault = math.nan
    model.form = lambda x: torch.cat([x, torch.ones(1, x.shape[1])])
    with pytest.raises(VerificationError, match="differs by inf"):
        hp.apply_plan(model, plan, example_inputs=x)


class ScoresOfChannels(nn.Module):
    """Channels multiply each other, behind biases, beside a divisor: neither mask would do alone."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 8), nn.Linear(4, 8)
        self.first, self.head, self.alpha = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        y = self.first(x)
        return scores.softmax(-1) @ self.head(y + (y * self.alpha).sin() ** 2 / self.alpha)


def test_biases_and_divisors_are_masked_apart() -> None:
    torch.manual_seed(0)
    model, x = ScoresOfChannels().eval(), example(2, 5, 4)
    plan = plan_for(model, x)
    assert plan.removed["query"]
    assert plan.removed["first"]
    assert hp.verify(model, hp.apply_plan(model, plan, example_inputs=x), plan, x) < 1e-12


def test_dropout_in_evaluation_does_not_look_like_a_fault() -> None:
    class Dropping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(self[1](self[0](x)), 0.5, training=True)
            return self[2](x + torch.randn_like(x))

    torch.manual_seed(0)
    model, x = Dropping(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), example(2, 4)
    plan = plan_for(model, x)
    assert hp.verify(model, hp.apply_plan(model, plan, example_inputs=x), plan, x) < 1e-12


class Masked(nn.Module):
    """Adds the least number of a type times integers: `0 · -inf` in double precision, whose least number overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.body(x)
        return y + ((1 - mask) * torch.finfo(y.dtype).min).sum(-1, keepdim=True)


class MaskedByWidth(Masked):
    """Slicing is wrong here."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x, mask) * self.body[1](self.body[0](x)).shape[1]


def test_outputs_that_are_finite_in_single_precision_alone_are_compared_there() -> None:
    x = example(3, 4), torch.ones(3, 5).long()
    model = Masked()
    assert not bool(torch.isfinite(Masked().double()(x[0].double(), x[1])).any())
    plan = plan_for(model, x)
    assert hp.verify(model, hp.apply_plan(model, plan, example_inputs=x), plan, x) < 1e-5
    with pytest.raises(VerificationError, match="float32"):
        hp.apply_plan(MaskedByWidth(), plan, example_inputs=x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_plan_fits_the_same_model_in_another_type(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    plan = plan_for(model, example(1, 3, 6, 6))
    smaller = hp.apply_plan(model.to(dtype), plan)
    assert hp.verify(model, smaller, plan, example(1, 3, 6, 6).to(dtype)) < 1e-2
    assert hp.cost(smaller, example(1, 3, 6, 6).to(dtype)).params == plan.cost_after.params
    with pytest.raises(VerificationError, match="must cost what the plan predicts"):
        hp.apply_plan(model, replace(plan, cost_after=replace(plan.cost_after, params=1)))
