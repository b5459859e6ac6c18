"""Our multi-head attention computes what torch's computes, for every option, and keeps its own kernels away."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.multihead import MultiheadAttention, free_heads, without_causal_guess

X, Y, Z = (
    torch.randn(3, size, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) for size in (5, 7, 7)
)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)

Call = Callable[[Any], Any]
CALLS: dict[str, tuple[dict[str, Any], Call]] = {
    "self": ({}, lambda m: m(X, X, X)),
    "without weights": ({}, lambda m: m(X, X, X, need_weights=False)),
    "weights of each head": ({}, lambda m: m(X, X, X, average_attn_weights=False)),
    "sequence first": ({"batch_first": False, "bias": False}, lambda m: m(X, X, X)),
    "cross": ({}, lambda m: m(X, Y, Y)),
    "three inputs": ({"bias": False}, lambda m: m(X, Y, Z, need_weights=False)),
    "other widths": ({"kdim": 4, "vdim": 6}, lambda m: m(X, Y[..., :4], Z[..., :6])),
    "bias of keys": ({"add_bias_kv": True}, lambda m: m(X, X, X, key_padding_mask=PADDING)),
    "zero key": ({"add_zero_attn": True}, lambda m: m(X, X, X, attn_mask=CAUSAL, need_weights=False)),
    "both": ({"add_zero_attn": True, "add_bias_kv": True}, lambda m: m(X, X, X, PADDING, False, CAUSAL.isinf())),
    "masks": ({}, lambda m: m(X, X, X, key_padding_mask=PADDING, attn_mask=CAUSAL.isinf())),
    "mask of numbers": ({}, lambda m: m(X, X, X, key_padding_mask=PADDING.double() * -3)),
    "mask of each head": ({}, lambda m: m(X, X, X, attn_mask=torch.arange(9.0 * 25).view(9, 5, 5).double().sin())),
    "causal": ({}, lambda m: m(X, X, X, attn_mask=CAUSAL, is_causal=True, need_weights=False)),
    "causal with padding": ({}, lambda m: m(X, X, X, PADDING, False, CAUSAL.isinf(), is_causal=True)),
    "unbatched": ({}, lambda m: m(X[0], Y[0], Y[0])),
    "unbatched and masked": ({}, lambda m: m(X[1], X[1], X[1], key_padding_mask=PADDING[1], attn_mask=CAUSAL.isinf())),
}


@pytest.fixture(autouse=True)
def _slow_kernels():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def tensors(output: Any) -> list[Tensor]:
    return [value for value in output if value is not None]


@pytest.mark.parametrize("name", CALLS)
def test_ours_equals_torchs(name: str) -> None:
    options, call = CALLS[name]
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(12, 3, **{"batch_first": True, **options}).double().eval()
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = copy.deepcopy(dense)
    free_heads(ours)
    assert isinstance(ours, MultiheadAttention)
    expected, actual = tensors(call(dense)), tensors(call(ours))
    assert [value.shape for value in expected] == [value.shape for value in actual]
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_dropout_works_in_training() -> None:
    attention = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True).double()
    free_heads(attention)
    outputs = [attention(X, X, X, need_weights=needed)[0] for needed in (True, True, False, False)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[2], outputs[3])


def test_only_attention_whose_tensors_change_becomes_ours() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, batch_first=True), 2)
    free_heads(encoder, ["layers.0.linear1.weight"])
    assert encoder.use_nested_tensor
    free_heads(encoder, ["layers.1.self_attn.out_proj.weight"])
    kinds = [type(layer.self_attn) for layer in encoder.layers]
    assert kinds == [nn.MultiheadAttention, MultiheadAttention]
    assert not encoder.use_nested_tensor


def test_the_fused_kernels_are_never_taken() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, batch_first=True), 2).double().eval()
    free_heads(encoder)
    outputs = []
    for fast in (True, False):
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.no_grad():
            outputs.append(encoder(X, src_key_padding_mask=PADDING))
    assert torch.equal(*outputs)


def test_ours_is_pickled_and_copied() -> None:
    attention = nn.MultiheadAttention(12, 3, batch_first=True).double().eval()
    free_heads(attention)
    for again in (pickle.loads(pickle.dumps(attention)), copy.deepcopy(attention)):
        assert torch.equal(again(X, X, X)[0], attention(X, X, X)[0])


def test_masks_are_not_read_for_a_guess() -> None:
    guess = nn.modules.transformer._detect_is_causal_mask
    with without_causal_guess():
        assert not nn.modules.transformer._detect_is_causal_mask(CAUSAL, None, 5)
    assert nn.modules.transformer._detect_is_causal_mask is guess
