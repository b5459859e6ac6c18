"""Attention in which each head of keys and values has its own number of queries: keys and values are gathered."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

GATHERING = {"scaled_dot_product_attention", "matmul", "__matmul__"}
"""Functions that multiply queries by keys, or weights by values."""

SHARES = ("num_key_value_groups", "n_rep")
"""Attributes with the number of queries that share a head of keys and values: of transformers, and of Llama's code."""


def share_singly(module: nn.Module) -> None:
    """Keep transformers from repeating keys and values before the products that gather them."""
    for name in SHARES:
        if isinstance(vars(module).get(name), int):
            setattr(module, name, 1)


def gathered(
    func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any], queries: Sequence[int]
) -> Any:
    """Call a product of attention with one head of keys and values for each query.

    Args:
        func: The function that a function mode receives.
        name: Its name.
        args: Queries or weights, and keys or values, `(N, heads, …)`.
        kwargs: Other arguments.
        queries: The number of queries of each head of keys and values.

    Example:
        >>> import torch
        >>> q, k = torch.ones(1, 3, 2, 4), torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 4, 2)
        >>> gathered(torch.matmul, "matmul", (q, k), {}, [2, 1])[0, :, 0, 0]
        tensor([0., 0., 4.])
    """
    many = name == "scaled_dot_product_attention"
    names = ("query", "key", "value") if many else ("input", "other")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    first, *others = (given.get(each) for each in names)
    if not isinstance(first, Tensor) or first.dim() != 4 or first.shape[1] != sum(queries):
        return func(*args, **kwargs)
    spread = [_spread(each, queries) for each in others]
    if not many:
        return func(first, *spread)
    options = {key: value for key, value in kwargs.items() if key not in names}
    return func(first, *spread, *args[3:], **options | {"enable_gqa": False})


def _spread(tensor: Any, queries: Sequence[int]) -> Any:
    """Return each head as often as it has queries, where there is one for each number."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 4 or tensor.shape[1] != len(queries):
        return tensor
    heads = [head for head, count in enumerate(queries) for _ in range(count)]
    return tensor.index_select(1, torch.tensor(heads, device=tensor.device))
