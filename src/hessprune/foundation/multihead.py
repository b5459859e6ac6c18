"""torch's multi-head attention with any number of heads: queries, keys and values narrower than the embedding."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import transformer as torch_transformer


class MultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads need not fill `embed_dim`; parameters keep their names.

    Stands in for torch's class where heads are removed. `free_heads` turns one into the other. Calls, masks and results
    are those of torch's class, except for nested tensors. The fused kernels of torch take the embedding for the width
    of all heads together, so `_qkv_same_embed_dim` keeps `nn.TransformerEncoderLayer` away from them.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.foundation.multihead import free_heads
        >>> attention, x = nn.MultiheadAttention(8, 2).eval(), torch.randn(5, 3, 8)
        >>> before = attention(x, x, x)[0]
        >>> free_heads(attention)
        >>> torch.allclose(attention(x, x, x)[0], before, atol=1e-6)
        True
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs and, if wanted, attention weights, as torch's class does."""
        is_batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        if not is_batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else self._mask(q, k, attn_mask, key_padding_mask)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout, weights = self.dropout if self.training else 0.0, None
        scale = self.head_dim**-0.5  # of the dense heads: those of fewer numbers keep it
        if need_weights:
            scores = (q * scale) @ k.transpose(-1, -2)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout, self.training)
            context = weights @ v
        else:
            context = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
        output = self.out_proj(context.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, `(…, num_heads · head_dim)` each."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            q, k, v = F.linear(query, weight, bias).chunk(3, -1)
            return q, k, v
        biases = (None, None, None) if bias is None else bias.chunk(3)
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if weight is None else weight.chunk(3)
        q, k, v = (F.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return the sum of both masks as numbers, broadcastable to `(N, num_heads, L, S)`."""
        masks = []
        if attn_mask is not None:
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (q.shape[0], -1)))
        if padding is not None:
            masks.append(padding.view(q.shape[0], 1, 1, -1))
        if not masks:
            return None
        added = sum(_added(mask, q.dtype) for mask in masks)
        return F.pad(added, (0, k.shape[1] - added.shape[-1]))  # type: ignore[union-attr, arg-type]  # not the integer 0


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: `-inf` where a mask of booleans is True."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype is torch.bool else mask


def free_heads(model: nn.Module, changing: Collection[str] | None = None) -> None:
    """Turn torch's multi-head attention in a model into ours, in place: all of it, or where tensors will change.

    Args:
        model: The model, or the attention itself.
        changing: Names of tensors.
    """
    changed = set()
    for name, module in model.named_modules():
        own = f"{name}." if name else ""
        if type(module) is nn.MultiheadAttention and (changing is None or any(x.startswith(own) for x in changing)):
            module.__class__ = MultiheadAttention
            module._qkv_same_embed_dim = False  # what torch asks before it takes a fused kernel
            changed.add(module)
    for encoder in model.modules() if changed else ():
        layers: Any = encoder.layers if isinstance(encoder, nn.TransformerEncoder) else ()
        if any(module in changed for layer in layers for module in layer.modules()):
            encoder.use_nested_tensor = False  # type: ignore[assignment]  # else it packs padded inputs


@contextmanager
def without_causal_guess() -> Iterator[None]:
    """Keep torch's encoders and decoders from reading a mask to see whether it is causal; one thread at a time.

    The answer only chooses a kernel, and an exporter has no numbers to give it.
    """
    guess = torch_transformer._detect_is_causal_mask
    torch_transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True  # noqa: ARG005
    try:
        yield
    finally:
        torch_transformer._detect_is_causal_mask = guess
