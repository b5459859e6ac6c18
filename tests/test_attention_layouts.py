"""Attention as people write it: heads are found, half of them go, and slicing equals masking by an independent mask."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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


class Written(nn.Module):
    """Self-attention over two linear layers with a function between them that takes heads apart and joins them."""

    def __init__(self, core: Callable[..., Tensor], **attributes: Any) -> None:
        super().__init__()
        self.core = core
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.register_buffer("causal", torch.ones(16, 16).tril() == 0)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.core(self, x, self.qkv(x)))


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1) @ v


def constant_view(m: Any, x: Tensor, y: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = y.view(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4)
    return eager(q, k, v).transpose(1, 2).reshape(b, n, -1)


def nano(m: Any, x: Tensor, y: Tensor) -> Tensor:
    b, t, c = x.shape
    q, k, v = (part.view(b, t, m.n_head, c // m.n_head).transpose(1, 2) for part in y.split(m.n_embd, dim=2))
    return eager(q, k, v, m.causal[:t, :t]).transpose(1, 2).contiguous().view(b, t, c)


def dino(m: Any, x: Tensor, y: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = y.reshape(b, n, 3, m.num_heads, c // m.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


def chunked(m: Any, x: Tensor, y: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (4, 6)).transpose(1, 2) for part in y.chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rearranged(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """As einops writes `b n (qkv h d) -> qkv b h n d` with `h=4`, and products by `einsum`."""
    b, n, _ = x.shape
    q, k, v = y.reshape(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4)
    weights = (torch.einsum("bhid,bhjd->bhij", q, k) * 6**-0.5).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).reshape(b, n, 24)


def configured(m: Any, x: Tensor, y: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = (z.view(b, n, m.config.heads, -1).transpose(1, 2) for z in y.chunk(3, -1))
    return eager(q, k, v).transpose(1, 2).reshape(b, n, -1)


def merged(m: Any, x: Tensor, y: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = (z.view(b, n, m.heads, -1).transpose(1, 2).reshape(b * m.heads, n, -1) for z in y.chunk(3, -1))
    return eager(q, k, v).view(b, m.heads, n, -1).transpose(1, 2).reshape(b, n, -1)


class Grouped(nn.Module):
    """Attention whose queries share keys and values, in eight heads of queries or four."""

    def __init__(self, core: Callable[..., Tensor], n_heads: int, n_kv: int) -> None:
        super().__init__()
        self.core, self.n_heads, self.n_kv, self.size = core, n_heads, n_kv, 3
        self.q, self.k, self.v = nn.Linear(24, 3 * n_heads), nn.Linear(24, 3 * n_kv), nn.Linear(24, 3 * n_kv)
        self.proj = nn.Linear(3 * n_heads, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.core(self, *self.taken_apart(x))
        return self.proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))

    def taken_apart(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.n_heads, self.size).transpose(1, 2)
        k = self.k(x).view(b, n, self.n_kv, self.size).transpose(1, 2)
        return q, k, self.v(x).view(b, n, self.n_kv, self.size).transpose(1, 2)


def native(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def interleaved(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    share = m.n_heads // m.n_kv
    return F.scaled_dot_product_attention(q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1))


def five_axes(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, n, d = k.shape
    k, v = (x[:, :, None].expand(b, h, m.n_heads // m.n_kv, n, d).reshape(b, m.n_heads, n, d) for x in (k, v))
    return eager(q, k, v)


def broadcast(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return eager(q, k, v)


def spread(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return eager(q, *(x.expand(-1, m.n_heads, -1, -1) for x in (k, v)))


def separated(m: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = (part.view(b, n, -1, 6).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def sliced(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return separated(m, x, y[:, :, :48], y[..., 48:-24], y[..., 72:])


def unequal(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return separated(m, x, *y.split([48, 24, 24], dim=-1))


class Fused(Written):
    """Eight heads of queries and four of keys and values from one layer."""

    def __init__(self, core: Callable[..., Tensor]) -> None:
        super().__init__(core)
        self.qkv, self.proj = nn.Linear(24, 48 + 24 + 24), nn.Linear(48, 24)


def fused(core: Callable[..., Tensor]) -> Layout:
    return Layout(lambda: Around(Fused(core), lambda m, x: m(x)), (X,), others=(LONGER,))


def sharing(core: Callable[..., Tensor], n_heads: int = 8, n_kv: int = 4) -> Layout:
    return Layout(lambda: Around(Grouped(core, n_heads, n_kv), lambda m, x: m(x)), (X,), others=(LONGER,))


def written(core: Callable[..., Tensor], **attributes: Any) -> Layout:
    return Layout(lambda: Around(Written(core, **attributes), lambda m, x: m(x)), (X,), others=(LONGER,))


LAYOUTS: dict[str, Layout] = {
    "a constant number of heads": written(constant_view),
    "nanoGPT": written(nano, n_head=4, n_embd=24),
    "DINO": written(dino, num_heads=4),
    "chunks": written(chunked),
    "rearranged": written(rearranged),
    "a shared configuration": written(configured, config=SimpleNamespace(heads=4)),
    "heads beside the batch": written(merged, heads=4),
    "grouped, sliced": fused(sliced),
    "grouped, in unequal parts": fused(unequal),
    "grouped in the kernel": sharing(native),
    "grouped by repetition": sharing(interleaved),
    "grouped by expansion": sharing(five_axes),
    "one key in the kernel": sharing(native, 4, 1),
    "one key by broadcasting": sharing(broadcast, 4, 1),
    "one key by expansion": sharing(spread, 4, 1),
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
EXPORTED = ("grouped, sliced", "nanoGPT", "DINO", "torch", "torch, cross", "torch, masks", "encoder", "decoder")


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


def test_a_pruned_encoder_is_its_mask_with_the_fast_path_on_and_off() -> None:
    layout = LAYOUTS["encoder"]
    model = build(layout)
    groups, plan, pruned = halved(model, layout)
    expected, outputs = masked(model, groups, plan.removed), []
    for fast in (True, False):
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.no_grad():
            outputs += [expected(*layout.inputs), pruned(*layout.inputs)]
    assert sum(len(plan.removed[group.name]) for group in heads_of(groups)) == HEADS
    assert not torch.equal(outputs[0], outputs[2])  # other kernels
    assert all(difference(outputs[0], output) < 1e-10 for output in outputs[1:])


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


@pytest.mark.parametrize("name", ["torch", "encoder", "nanoGPT"])
def test_pruned_layouts_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    _, plan, pruned = halved(build(layout), layout)
    again = hp.load(hp.save(pruned, plan, tmp_path), layout.make)
    assert torch.equal(call_model(again, layout.inputs), call_model(pruned, layout.inputs))
