"""Keys and values are gathered for each query, in one kernel and in two products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.foundation.gathering import gathered


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_kernel_and_two_products_agree_with_repeated_keys() -> None:
    q, k, v, queries = drawn(2, 4, 5, 6), drawn(2, 3, 7, 6), drawn(2, 3, 7, 6), [1, 0, 3]
    many = [torch.cat([x[:, :1], *[x[:, 2:]] * 3], 1) for x in (k, v)]
    expected = F.scaled_dot_product_attention(q, many[0], many[1])
    attention = F.scaled_dot_product_attention
    options = {"key": k, "value": v, "enable_gqa": True}
    assert torch.equal(gathered(attention, "scaled_dot_product_attention", (q,), options, queries), expected)
    weights = (gathered(torch.matmul, "matmul", (q, k.mT), {}, queries) / 6**0.5).softmax(-1)
    assert torch.allclose(gathered(torch.matmul, "matmul", (weights, v), {}, queries), expected, atol=1e-6)


def test_other_products_stay() -> None:
    x, y = drawn(2, 5, 6), drawn(6, 3)
    assert torch.equal(gathered(torch.matmul, "matmul", (x, y), {}, [2, 1]), x @ y)
