"""Grouped queries as units: at one place of every head of keys and values, or each by itself."""

import pytest
import torch

import hessprune as hp
from hessprune.errors import ArgumentError
from tests.networks.check import masked
from tests.test_attention_layouts import LAYOUTS, Layout, X


def units(layout: Layout, gqa: str) -> tuple[torch.nn.Module, hp.Groups]:
    torch.manual_seed(0)
    model = layout.make().double().eval()
    return model, hp.find_groups(model, layout.inputs, gqa=gqa, compare=True)


def test_any_query_of_attention_in_one_kernel_leaves() -> None:
    model, groups = units(LAYOUTS["grouped in the kernel"], "free-queries")
    queries = next(each for each in groups if each.num_units == 8 and each.literals)
    assert {piece.param.rpartition(".")[0] for piece in queries.slices} == {"attention.q", "attention.proj"}
    named = [literal.attribute for literal in queries.literals]
    assert named == [*(f"queries[{key} of 4]=2" for key in range(4)), "n_heads"]
    plan = hp.make_plan(
        model,
        [queries],
        {queries.name: torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0])},
        hp.Budget(units=5 / 8),
        example_inputs=LAYOUTS["grouped in the kernel"].inputs,
        ranking=hp.Ranking(per_cost=False),
    )
    smaller = hp.apply_plan(model, plan)
    assert torch.allclose(smaller(X), masked(model, [queries], plan.removed)(X))
    assert any("keys and values stay for gqa='free-queries'" in item.reason for item in groups.frozen)


def test_attention_with_as_many_keys_as_queries_is_found_as_ever() -> None:
    for gqa in ("even-queries", "free-queries"):
        _, groups = units(LAYOUTS["DINO"], gqa)
        assert 4 in [group.num_units for group in groups]


@pytest.mark.parametrize(
    "ask", [lambda: hp.Ranking(gqa="all"), lambda: hp.find_groups(torch.nn.Linear(2, 2), X, gqa="all")]
)
def test_other_modes_are_refused(ask) -> None:
    with pytest.raises(ArgumentError, match="`gqa` must be"):
        ask()
