"""Grouped queries: a key/value head with its queries is a unit, or queries leave and keys and values stay."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice
from hessprune.foundation.formatting import shortened
from hessprune.foundation.gathering import SHARES
from hessprune.foundation.modules import split_name
from hessprune.foundation.written import WrittenSize
from hessprune.structure.groups import Frozen, Group, Literal, Slice

MODES = ("kv-group", "even-queries", "free-queries")
"""Units of attention in which several heads of queries share keys and values.

`kv-group`: a head of keys and values with its queries. `even-queries`: from every such head, the query at the same
place. `free-queries`: any query.
"""
_log = logging.getLogger(__name__)


def check_mode(gqa: str) -> None:
    """Raise unless this is a mode.

    Raises:
        ArgumentError: It is none.
    """
    check_choice("gqa", gqa, MODES)


def check_queries(groups: Sequence[Group], gqa: str) -> None:
    """Raise unless groups have the units of a mode.

    Raises:
        ArgumentError: Heads of keys and values are units, and queries are asked for.
    """
    heads = [group.name for group in groups if gqa != "kv-group" and group.kind == "heads" and _sizes(group)]
    if heads:
        raise ArgumentError(
            f"`ranking.gqa` must be that of the groups, got {gqa!r}, but heads of keys and values are the units of "
            f"{shortened(heads, 2)}. Pass groups of hp.find_groups(model, example_inputs, gqa={gqa!r})."
        )


def by_queries(model: nn.Module, groups: Sequence[Group], gqa: str) -> tuple[list[Group], list[Frozen]]:
    """Return the groups with queries as units where heads of keys and values were, and the axes that stay for that.

    Attention with as many keys as queries is returned as it is, and so, with a warning, is that whose keys and values
    come from one layer.

    Raises:
        ArgumentError: All grouped attention is of that kind.
    """
    found, frozen, stuck = [], [], []
    for group in groups:
        sizes = None if gqa == "kv-group" or group.kind != "heads" else _sizes(group)
        if sizes is None:
            found.append(group)
            stuck += [repr(group.name)] if gqa != "kv-group" and _is_fused(group) else []
            continue
        parts = [piece for piece in group.slices if len(piece.index[0]) > sizes[1]]
        others = [piece for piece in group.slices if piece not in parts]
        reason = f"keys and values stay for gqa={gqa!r}"
        frozen += [Frozen(param=piece.param, dim=piece.dim, reason=reason) for piece in others]
        found.append(_even(group, parts, *sizes) if gqa == "even-queries" else _free(model, group, parts, *sizes))
    if stuck and not frozen:
        raise ArgumentError(
            f"`gqa` must be 'kv-group' for this model, got {gqa!r}: queries leave without their keys and values where "
            f"these come from two layers, and here one makes both, {shortened(stuck, 2)}. Leave `gqa` out."
        )
    if stuck:
        _log.warning("one layer makes keys and values, which leave with their queries: %s", shortened(stuck))
    return found, frozen


def _is_fused(group: Group) -> bool:
    """Return whether a unit is several queries with a head of keys and values, of layers that make both.

    What `n` queries of width `w` and their keys and values need are `n·w + 2·w` rows, and `n·w` columns read them.
    """
    produced = sum(len(piece.index[0]) for piece in group.slices_with_role("producer"))
    consumed = {len(piece.index[0]) for piece in group.slices_with_role("consumer")}
    read, twice = max(consumed, default=0), produced - max(consumed, default=0)
    return group.kind == "heads" and len(consumed) == 1 and 0 < twice < 2 * read and 2 * read % twice == 0


def _sizes(group: Group) -> tuple[int, int] | None:
    """Return the number of queries of a head of keys and values, and its width; None if there is one, or no such head.

    Queries come from one layer, keys and values from two others of the width of one head, and one layer reads them.
    """
    widths = {role: [len(s.index[0]) for s in group.slices_with_role(role)] for role in ("producer", "consumer")}
    narrow, wide = min(widths["producer"], default=0), max(widths["producer"], default=0)
    is_grouped = 0 < narrow < wide and wide % narrow == 0 and set(widths["consumer"]) == {wide}
    every = {len(piece.index[0]) for piece in group.slices}
    many = widths["producer"].count(narrow) == 2 * widths["producer"].count(wide)
    return (wide // narrow, narrow) if is_grouped and many and every == {narrow, wide} else None


def _even(group: Group, parts: Sequence[Slice], queries: int, width: int) -> Group:
    """Return the group whose unit is the query at one place of every head of keys and values."""
    slices = [replace(piece, index=_columns(piece, width)) for piece in parts]
    return replace(group, num_units=queries, slices=tuple(slices), literals=())


def _columns(piece: Slice, width: int) -> tuple[tuple[int, ...], ...]:
    """Return for each place of a query its positions in all heads of keys and values."""
    cut = [list(_cut(row, width)) for row in piece.index]
    return tuple(tuple(position for part in places for position in part) for places in zip(*cut, strict=True))


def _free(model: nn.Module, group: Group, parts: Sequence[Slice], queries: int, width: int) -> Group:
    """Return the group whose unit is a query; its attention counts the queries that each head of keys still has."""
    slices = [replace(piece, index=tuple(part for row in piece.index for part in _cut(row, width))) for piece in parts]
    keys = group.num_units
    owner = split_name(split_name(parts[0].param)[0])[0]
    module = model.get_submodule(owner)
    literals = [
        Literal(
            module=owner,
            attribute=WrittenSize("queries", key, keys, queries).name_in(module),
            counts=tuple(int(unit // queries == key) for unit in range(keys * queries)),
        )
        for key in range(keys)
    ]
    return replace(group, num_units=keys * queries, slices=tuple(slices), literals=tuple(literals))


def with_share(model: nn.Module, group: Group) -> Group:
    """Return a group of queries whose keys stay, with the attribute that says how many queries share a key.

    A forward may read it on some paths alone: with a padded mask and not without, say. The attribute counts the units
    where the group leaves rows of another weight of the attention, those of the keys.
    """
    produced = group.slices_with_role("producer")
    if group.kind != "heads" or len(produced) != 1:
        return group
    owner = split_name(split_name(produced[0].param)[0])[0]
    module = model.get_submodule(owner)
    counted = {literal.attribute for literal in group.literals if literal.module == owner}
    names = [name for name in SHARES if vars(module).get(name) == group.num_units and name not in counted]
    if not names or not _keeps_rows(module, owner, group):
        return group
    ones = (1,) * group.num_units
    more = [Literal(module=owner, attribute=name, counts=ones) for name in names]
    return replace(group, literals=(*group.literals, *more))


def _keeps_rows(module: nn.Module, owner: str, group: Group) -> bool:
    """Return whether rows of a weight stay that neither emits all units of a group nor reads them."""
    readers = {piece.param for piece in group.slices_with_role("consumer")}
    leaving = {piece.param: piece.positions().numel() for piece in group.slices_with_role("producer")}
    rows = {f"{owner}.{name}": weight.shape[0] for name, weight in module.named_parameters() if weight.dim() == 2}
    return any(size > leaving.get(name, 0) for name, size in rows.items() if name not in readers)


def _cut(row: Sequence[int], width: int) -> Iterator[tuple[int, ...]]:
    """Yield parts of equal width."""
    for start in range(0, len(row), width):
        yield tuple(row[start : start + width])
