"""Attention as people write it: heads are found, half of them go, and slicing equals masking by an independent mask."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.modules import call_model
from hessprune.structure.outputs import difference
from tests.networks.check import counted_macs, masked

HEADS = 4


@dataclass(frozen=True)
class Layout:
    """A model and its inputs, the number of groups of heads, and other inputs for which it must agree, too."""

    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    groups: int = 1
    others: tuple[Tensor, ...] = ()


class Around(nn.Module):
    """Attention between two linear layers."""

    def __init__(self, attention: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(24, 24), attention, nn.Linear(24, 5)
        self.call = call

    def forward(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        others = [other for other in (y, z) if other is not None]
        return self.last(self.call(self.attention, self.first(x), *others))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


X, Y, LONGER = drawn(2, 6, 24), drawn(2, 7, 24), drawn(3, 9, 24)
PADDING = torch.arange(6).expand(2, 6) >= torch.tensor([[6], [4]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)


def torchs(call: Callable[..., Any], *inputs: Tensor, others: tuple[Tensor, ...] = (), **options: Any) -> Layout:
    options = {"batch_first": True, **options}
    return Layout(lambda: Around(nn.MultiheadAttention(24, HEADS, **options), call), inputs, others=others)


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, HEADS, 32, **{"batch_first": True, **options})
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


LAYOUTS: dict[str, Layout] = {
    "torch": torchs(lambda m, x: m(x, x, x)[0], X, others=(LONGER,)),
    "torch, no weights": torchs(lambda m, x: m(x, x, x, need_weights=False)[0], X),
    "torch, sequence first": torchs(lambda m, x: m(x, x, x)[0], X, batch_first=False, bias=False),
    "torch, cross": torchs(lambda m, x, y: m(x, y, y)[0], X, Y),
    "torch, widths": torchs(lambda m, x, y: m(x, y, y[..., :10])[0], X, Y, kdim=24, vdim=10),
    "torch, bias of keys": torchs(lambda m, x: m(x, x, x)[0], X, add_bias_kv=True, add_zero_attn=True),
    "torch, masks": torchs(lambda m, x, p, c: m(x, x, x, p, attn_mask=c.isinf())[0], X, PADDING, CAUSAL),
    "torch, unbatched": torchs(lambda m, x: m(x, x, x)[0], X[0]),
    "encoder": Layout(encoder, (X,), 2, others=(LONGER,)),
    "encoder, norm first": Layout(lambda: encoder(norm_first=True, activation="gelu"), (X, CAUSAL.isinf(), PADDING), 2),
    "decoder": Layout(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(24, HEADS, 32, batch_first=True), 1), (X, Y, CAUSAL), 2
    ),
    "transformer": Layout(lambda: nn.Transformer(24, HEADS, 1, 1, 32, batch_first=True), (X, Y), 3),
}
EXPORTED = ("torch", "torch, cross", "torch, masks", "encoder", "decoder")


def build(layout: Layout) -> nn.Module:
    """Return a model whose every parameter matters, in float64."""
    torch.manual_seed(0)
    model = layout.make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def heads_of(groups: hp.Groups) -> list[hp.Group]:
    return [group for group in groups if group.num_units == HEADS]


@pytest.fixture(autouse=True)
def _slow_kernels():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def halved(model: nn.Module, layout: Layout) -> tuple[hp.Groups, hp.Plan, nn.Module]:
    """Remove half of the units of every group."""
    groups = hp.find_groups(model, layout.inputs, compare=True)
    saliency = {}
    for number, group in enumerate(groups):
        order = torch.randperm(group.num_units, generator=torch.Generator().manual_seed(number))
        saliency[group.name] = order + 1000.0 * (order >= group.num_units // 2)
    plan = hp.make_plan(model, groups, saliency, hp.Budget(units=0.5), example_inputs=layout.inputs)
    return groups, plan, hp.apply_plan(model, hp.Plan.from_json(plan.to_json()), example_inputs=layout.inputs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_heads_are_found_and_slicing_is_masking(name: str) -> None:
    layout = LAYOUTS[name]
    model = build(layout)
    groups, plan, pruned = halved(model, layout)
    assert len(heads_of(groups)) == layout.groups
    assert all(len(plan.removed[group.name]) == HEADS // 2 for group in heads_of(groups))
    expected = masked(model, groups, plan.removed)
    for inputs in filter(None, (layout.inputs, layout.others)):
        with torch.no_grad():
            assert difference(call_model(expected, inputs), call_model(pruned, inputs)) < 1e-10
    assert counted_macs(pruned, layout.inputs) == plan.cost_after.macs
    assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.cost_after.params


@pytest.mark.parametrize("name", EXPORTED)
def test_pruned_layouts_run_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    layout = LAYOUTS[name]
    inputs = tuple(x.float() if x.is_floating_point() else x for x in layout.inputs)
    pruned = halved(build(layout), layout)[2].float()
    path = hp.export_onnx(pruned, inputs, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    names = [node.name for node in session.get_inputs()]
    (output,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    with torch.no_grad():
        assert difference(pruned(*inputs), torch.from_numpy(output)) < 1e-5


@pytest.mark.parametrize("name", ["torch", "encoder"])
def test_pruned_layouts_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    _, plan, pruned = halved(build(layout), layout)
    again = hp.load(hp.save(pruned, plan, tmp_path), layout.make)
    assert torch.equal(call_model(again, layout.inputs), call_model(pruned, layout.inputs))
