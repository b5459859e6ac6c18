"""Widths of queries, keys and values within heads: found on request, and slicing equals an independent mask."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.modules import call_model
from hessprune.structure.groups import Kind
from hessprune.structure.outputs import difference
from tests.networks.check import masked
from tests.test_attention_layouts import LAYOUTS, X, build
from tests.test_embedding import MANY, QUICK, lively, over_kept

WIDTHS: tuple[Kind, ...] = ("qk", "v")
ALL: tuple[Kind, ...] = ("heads", "neurons", "qk", "v", "channels", "embedding")


class Apart(nn.Module):
    """Attention over three layers; every size but the number of heads follows from the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.last(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


def apart() -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    return lively(Apart()), X, X[:1, :4]


def layout(name: str) -> tuple[nn.Module, Any, Any]:
    found = LAYOUTS[name]
    return build(found), found.inputs, found.others or found.inputs


def family(name: str) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    case = {**QUICK, **MANY}[name]
    return lively(case.make()), case.inputs(2), case.inputs(3)


def halved(model: nn.Module, inputs: Any, units: tuple[Kind, ...]) -> tuple[hp.Groups, hp.Plan, nn.Module]:
    groups = hp.find_groups(model, inputs, units=units, compare=True)
    generator = torch.Generator().manual_seed(0)
    saliency = {}
    for group in groups:
        order = torch.randperm(group.num_units, generator=generator)
        saliency[group.name] = order + 1000.0 * (order >= group.num_units // 2)
    plan = hp.make_plan(
        model,
        groups,
        saliency,
        hp.Budget(units=0.5),
        example_inputs=inputs,
        ranking=hp.Ranking(units=units, per_cost=False),
    )
    return groups, plan, hp.apply_plan(model, hp.Plan.from_json(plan.to_json()), example_inputs=inputs)


@pytest.fixture(autouse=True)
def _slow_kernels():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize(
    ("make", "name", "kinds"),
    [
        (apart, "", ["qk", "v"]),
        (layout, "torch", ["qk"]),
        (layout, "encoder", ["qk", "qk"]),
        (layout, "DINO", ["qk"]),
        *(pytest.param(family, name, ["qk", "qk"], marks=pytest.mark.slow) for name in ("BERT", "ViT of timm")),
        *(pytest.param(layout, name, ["qk"], marks=pytest.mark.slow) for name in ("torch, cross", "torch, widths")),
        *(pytest.param(layout, name, ["qk"], marks=pytest.mark.slow) for name in ("rearranged", "torch, masks")),
        *(pytest.param(layout, name, ["qk"], marks=pytest.mark.slow) for name in ("grouped in the kernel", "chunks")),
        *(pytest.param(family, name, ["qk", "qk"], marks=pytest.mark.slow) for name in ("GPT-2", "BEiT of timm")),
        *(pytest.param(family, name, ["qk", "qk"], marks=pytest.mark.slow) for name in ("ELECTRA",)),
        pytest.param(family, "ViT of transformers", ["qk", "qk"], marks=pytest.mark.slow),
        pytest.param(family, "Swin of timm", ["qk"] * 4, marks=pytest.mark.slow),
        pytest.param(family, "CaiT of timm", ["qk"] * 3, marks=pytest.mark.slow),
    ],
)
def test_widths_are_found_and_slicing_is_masking(make: Any, name: str, kinds: list[str]) -> None:
    model, inputs, others = make(name) if name else make()
    groups, plan, pruned = halved(model, inputs, WIDTHS)
    assert [group.kind for group in groups] == kinds
    assert all(len(plan.removed[group.name]) >= group.num_units // 2 for group in groups)
    expected = masked(model, groups, plan.removed)
    for each in (inputs, others):
        with torch.no_grad():
            assert difference(call_model(expected, each), call_model(pruned, each)) < 1e-10
    assert hp.cost(pruned, inputs) == plan.cost_after


def test_widths_of_queries_alone_and_of_values_alone() -> None:
    model, inputs, _ = apart()
    for kind, layers in (("qk", ["q", "q", "k", "k"]), ("v", ["v", "v", "out"])):
        (group,) = hp.find_groups(model, inputs, units=(kind,))
        assert [piece.param.split(".")[0] for piece in group.slices] == layers
        assert group.num_units == 6
        assert {len(piece.index[0]) for piece in group.slices} == {4}


def test_heads_go_rather_than_their_widths() -> None:
    model, inputs, _ = apart()
    assert [group.kind for group in hp.find_groups(model, inputs, units=("heads", "qk", "v"))] == ["heads"]
    result = hp.prune(
        model, inputs, [X], budget=hp.Budget(units=0.6), ranking=hp.Ranking(units=ALL), method="magnitude"
    )
    assert {group.kind for group in result.plan.groups} == {"heads", "neurons"}


def test_widths_and_everything_else_go_together() -> None:
    model, inputs, others = family("ViT of timm")
    units: tuple[Kind, ...] = ("neurons", "qk", "v", "channels", "embedding")
    groups, plan, pruned = halved(model, inputs, units)
    assert {group.kind for group in groups} == {"neurons", "qk", "embedding"}
    with torch.no_grad():
        assert difference(over_kept(model, groups, plan.removed)(others), pruned(others)) < 1e-10


def test_widths_go_after_heads() -> None:
    model, inputs, others = layout("torch")
    _, first, fewer = halved(model, inputs, ("heads",))
    groups, second, pruned = halved(fewer, inputs, WIDTHS)
    expected = masked(fewer, groups, second.removed)
    with torch.no_grad():
        assert difference(call_model(expected, others), call_model(pruned, others)) < 1e-10
    assert pruned.attention.in_proj_weight.shape == (3 * 2 * 3, 24)
    assert hp.cost(pruned, inputs) == second.cost_after
    assert first.num_removed == 2


def test_one_width_for_queries_keys_and_values_needs_both_kinds() -> None:
    model, inputs, _ = layout("DINO")
    with pytest.raises(hp.errors.ArgumentError, match=r"kinds of units that the model has.*axes stay because: .+\."):
        hp.find_groups(model, inputs, units=("qk",))
    frozen = hp.find_groups(model, inputs, units=("qk", "neurons")).frozen
    assert any("ask for 'qk' and 'v'" in item.reason for item in frozen)


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (family, "Llama", "names channels by position"),  # pairs of a rotation
        (layout, "nanoGPT", "the source code fixes its size"),  # divides by the root of the width
    ],
)
def test_widths_that_the_source_fixes_stay_with_a_reason(make: Any, name: str, reason: str) -> None:
    model, inputs, _ = make(name)
    groups = hp.find_groups(model, inputs, units=(*WIDTHS, "neurons"), compare=True)
    assert "qk" not in {group.kind for group in groups}
    assert any(reason in item.reason for item in groups.frozen)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "name"), [(layout, "encoder"), (family, "ViT of timm"), (layout, "DINO")])
def test_narrow_heads_are_saved_loaded_and_exported(make: Any, name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs, _ = make(name)
    inputs = inputs if isinstance(inputs, Tensor) else inputs[0]
    _, plan, pruned = halved(model, inputs, WIDTHS)
    again = hp.load(hp.save(pruned, plan, tmp_path), lambda: make(name)[0])
    assert torch.equal(call_model(again, inputs), call_model(pruned, inputs))
    path = hp.export_onnx(pruned.float(), inputs.float(), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    (output,) = session.run(None, {session.get_inputs()[0].name: inputs.float().numpy()})
    with torch.no_grad():
        assert difference(pruned(inputs.float()), torch.from_numpy(output)) < 1e-5
