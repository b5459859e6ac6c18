"""The cost of contractions: in Einstein's notation, and of attention and of groups in one kernel."""

import math
from collections.abc import Sequence
from typing import Any


def is_contraction(args: Sequence[Any]) -> bool:
    """Return whether the arguments of `einsum` are an equation of two operands, and sum over an axis of both.

    Example:
        >>> is_contraction(("ij,jk->ik", 0, 0)), is_contraction(("ij,ij->ij", 0, 0))
        (True, False)
    """
    equation = args[0].replace(" ", "") if args and isinstance(args[0], str) else ""
    terms, arrow, out = equation.partition("->")
    left, comma, right = terms.partition(",")
    is_plain = bool(arrow and comma) and (left + right + out).isalpha()
    return is_plain and bool(_inner(left, right, out))


def contraction_flops(equation: str, left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    """Return two operations for each multiply-add; torch multiplies element by element where it sums over one index.

    Args:
        equation: Such as `"ij,jk->ik"`.
        left: Shape of the first operand.
        right: Shape of the second one.

    Example:
        >>> contraction_flops("ij,jk->ik", (2, 3), (3, 4)), contraction_flops("ij,jk->ik", (2, 1), (1, 4))
        (48, 0)
    """
    terms, out = equation.replace(" ", "").split("->")
    a, b = terms.split(",")
    sizes = dict(zip(a + b, (*left, *right), strict=True))
    if all(sizes[axis] == 1 for axis in _inner(a, b, out)):
        return 0
    flops = 2
    for axis in {*out} | _inner(a, b, out):
        flops *= sizes[axis]
    return flops


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Return two operations for each multiply-add of scores and of weighted values, for each head of the queries.

    Args:
        query: Shape `(…, T, D)` of the queries, with the heads.
        key: Shape `(…, S, D)` of the keys.
        value: Shape `(…, S, E)` of the values.

    Example:
        >>> attention_flops((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))
        4200
    """
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def grouped_flops(rows: Sequence[int], matrices: Sequence[int], *_: Any, **__: Any) -> int:
    """Return two operations for each multiply-add of products that share one call, one for each group of rows.

    Args:
        rows: Shape `(S, K)` of the rows of all groups, or `(G, M, K)`.
        matrices: Shape `(G, K, N)` of one matrix for each group, or `(K, S)`.

    Example:
        >>> grouped_flops((10, 48), (4, 48, 64)), grouped_flops((4, 5, 48), (48, 10))
        (61440, 4800)
    """
    shared = rows[0] if len(rows) == 3 and len(matrices) == 2 else 1
    return 2 * math.prod(rows) * matrices[-1] // shared


def _inner(left: str, right: str, out: str) -> set[str]:
    """Return the axes of both operands over which the product sums."""
    return ({*left} & {*right}) - {*out}
