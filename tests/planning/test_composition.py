"""Plans in a row: the composed plan gives the model that both plans give in turn, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.planning.implants import Implant
from hessprune.planning.plan import Plan
from hessprune.structure.groups import Group
from hessprune.structure.remaining import remaining_groups
from tests.cases import AWKWARD, Plain, Residual, image, make
from tests.huggingface import package
from tests.structure.nets import ChannelAndSpaceAttention, NonLocal, Recurrent, SplitAttention, Transformer

X = image()


class Heads(nn.Module):
    """Attention over positions, whose heads may go, and two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Conv2d(3, 8, 2, 2), nn.ModuleList(nn.Linear(8, 18) for _ in range(3))
        self.out, self.up, self.head = nn.Linear(18, 10), nn.Linear(10, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(2, (-1, 3)).transpose(1, 2) for layer in self.qkv)
        x = ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(self.up(self.out(x).relu()).relu().mean(1))


CASES = (*AWKWARD, Heads, ChannelAndSpaceAttention, NonLocal, Recurrent, SplitAttention, Transformer)


def plan_for(
    model: nn.Module,
    share: float,
    *,
    seed: int,
    implant: float | Implant = 0.0,
    groups: Sequence[Group] | None = None,
) -> Plan:
    groups = groups or hp.find_groups(model, X)
    generator = torch.Generator().manual_seed(seed)
    saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
    ranking, budget = hp.Ranking(min_kept_fraction=0.0), hp.Budget(units=share)
    return hp.make_plan(model, groups, saliency, budget, example_inputs=X, ranking=ranking, implant=implant)


def anew(model: nn.Module, _: Plan) -> Sequence[Group]:
    return hp.find_groups(model, X)


def remaining(_: nn.Module, plan: Plan) -> Sequence[Group]:
    return remaining_groups(plan.groups, plan.removed)


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def in_turn(case: type[nn.Module], implant: float | Implant = 0.0) -> tuple[nn.Module, Plan, Plan, nn.Module]:
    """Return the dense model, two plans, and the model that both give."""
    model = make(case)
    first = plan_for(model, 0.85, seed=1)
    once = hp.apply_plan(model, first)
    second = plan_for(once, 0.8, seed=2, implant=implant)
    return model, first, second, hp.apply_plan(once, second)


@pytest.mark.parametrize("groups_of", [anew, remaining])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_composed_plan_gives_what_both_give_in_turn(case: type[nn.Module], groups_of: Callable) -> None:
    model = make(case)
    first = plan_for(model, 0.85, seed=1)
    once = hp.apply_plan(model, first)
    second = plan_for(once, 0.8, seed=2, groups=groups_of(once, first))
    twice, both = hp.apply_plan(once, second), first.then(second)
    direct = hp.apply_plan(model, both)
    assert equal(direct, twice)
    assert torch.equal(direct(X), twice(X))
    assert first.num_removed
    assert both.num_removed == first.num_removed + second.num_removed > first.num_removed
    assert (both.cost_before, both.cost_after, both.budget) == (first.cost_before, second.cost_after, second.budget)
    assert Plan.from_json(both.to_json()) == both


@pytest.mark.parametrize("implant", [Implant(share=0.5), Implant(share=0.5, rank=2)])
def test_implants_of_the_last_plan_are_kept(implant: Implant) -> None:
    model, first, second, twice = in_turn(Residual, implant)
    both = first.then(second)
    assert both.num_implanted == second.num_implanted > 0
    assert equal(hp.apply_plan(model, both), twice)
    assert Plan.from_json(both.to_json()) == both


def test_three_plans_compose_in_either_order() -> None:
    model, first, second, twice = in_turn(Residual)
    third = plan_for(twice, 0.9, seed=3)
    left, right = first.then(second).then(third), first.then(second.then(third))
    assert (left.removed, left.cost_after) == (right.removed, right.cost_after)
    assert equal(hp.apply_plan(model, left), hp.apply_plan(twice, third))
    assert len(left.provenance["earlier"]) == len(right.provenance["earlier"]) == 2


def test_training_in_between_changes_nothing() -> None:
    model, first = make(Residual), plan_for(make(Residual), 0.8, seed=0)
    once = hp.apply_plan(model, first)
    with torch.no_grad():
        for parameter in once.parameters():
            parameter.add_(0.1)
    second = plan_for(once, 0.8, seed=1)
    both = first.then(second)
    assert both.provenance["weights_sha256"] == first.provenance["weights_sha256"]
    shapes = {name: tuple(value.shape) for name, value in hp.apply_plan(once, second).state_dict().items()}
    assert both.shapes_after == {name: shapes[name] for name in both.shapes}


def test_times_refer_to_the_dense_model() -> None:
    _, first, second, _ = in_turn(Plain)
    first = replace(first, provenance={**first.provenance, "latency": {"dense_ms": 10.0, "predicted_ms": 8.0}})
    timed = replace(second, provenance={**second.provenance, "latency": {"dense_ms": 8.0, "predicted_ms": 4.0}})
    assert first.then(timed).kept_fraction("latency_ms") == 0.4
    assert "latency" not in first.then(second).provenance


def test_plans_of_another_model_are_refused() -> None:
    model, first, second, _ = in_turn(Plain)
    with pytest.raises(
        hp.errors.ArgumentError, match=r"`next_plan` must be made for the model .* MACs .* got .* Make it for"
    ):
        first.then(plan_for(model, 0.7, seed=4))
    moved = replace(second.groups[0], slices=second.groups[0].slices[1:])
    other = replace(second, groups=(moved, *second.groups[1:]), removed={moved.name: (0,)})
    with pytest.raises(hp.errors.ArgumentError, match=r"unit 0 of its group 'body.0.0' has other slices there"):
        first.then(other)
    with pytest.raises(hp.errors.ArgumentError, match="`next_plan` must be a Plan or a Widening, got None"):
        first.then(None)  # type: ignore[arg-type]


def test_plans_after_implants_are_refused_by_name() -> None:
    model = make(Plain)
    first = plan_for(model, 0.8, seed=1, implant=0.5)
    second = plan_for(hp.apply_plan(model, first), 0.8, seed=2)
    with pytest.raises(hp.errors.ArgumentError, match=r"without implants, got stand-ins in 'body.* Plan implants last"):
        first.then(second)


def test_plans_whose_units_are_queries_of_a_last_head_of_keys_are_a_chain(tmp_path: Path) -> None:
    transformers = package("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 20}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    words = {"input_ids": torch.randint(3, 20, (2, 6))}
    options = {"method": "magnitude", "compensate": False}
    once = hp.prune(model, words, [words], budget=hp.Budget(kv_cache=0.75), **options)
    twice = hp.prune(once.model, words, [words], budget=hp.Budget(units=0.5), **options)
    queries = [g for g in twice.plan.groups if g.kind == "heads" and g.num_units == 2 and twice.plan.removed[g.name]]
    both = once.plan.then(twice.plan)
    assert queries
    assert not isinstance(both, Plan)
    assert (both.cost_before, both.cost_after) == (once.plan.cost_before, twice.plan.cost_after)
    loaded = hp.load(hp.save(twice.model, both, tmp_path))
    assert torch.equal(loaded(**words).logits, twice.model(**words).logits)
