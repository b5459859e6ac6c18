"""Find the groups of coupled units of any model: capture, run on labels, collect what stayed together, try it out."""

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from hessprune._modules import split_name
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.structure import rules
from hessprune.structure.capture import capture
from hessprune.structure.groups import Frozen, Group, Groups, Literal, Role, Slice
from hessprune.structure.trial import without_failures
from hessprune.structure.walk import Axis, GraphWalk

Ignored = nn.Module | type[nn.Module] | str
_LOADED = rules  # importing the package fills the table of rules


def find_groups(model: nn.Module, example_inputs: Any, ignore: Sequence[Ignored] = ()) -> Groups:
    """Find every unit (channel, neuron, …) that can be removed, with all slices that must go with it.

    Runs the `torch.export` graph of the model on labels: each index of each parameter axis has one, shape operators
    move them, and wherever two labels meet they are tied. What is tied is one unit; units with the same slices form a group.
    Units that reach the model's input or output, or an operator without a rule, are frozen, with the reason. Finally
    one unit of every group is removed on trial (on the meta device), which freezes what the source code holds fixed.

    Args:
        model: Any module that `torch.export` captures; it is left untouched.
        example_inputs: A tensor, a tuple of positional, or a dict of keyword arguments. Only shapes matter.
        ignore: Layers whose outputs must keep their width: modules, module types, or name patterns (`"layer1.*"`).

    Returns:
        The groups in the order in which the model uses them; `.frozen` lists every axis that cannot shrink, and why.

    Raises:
        UnsupportedModelError: The model cannot be captured, or nothing in it can be pruned.
        ArgumentError: An entry of `ignore` matches no module of the model.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> print(find_groups(net, torch.zeros(1, 3, 8, 8))[0])
        0: 8 units
          producer 0.weight dim 0
          follower 0.bias dim 0
          follower 1.weight dim 0
          follower 1.bias dim 0
          follower 1.running_mean dim 0
          follower 1.running_var dim 0
          consumer 3.weight dim 1
    """
    ignored = _ignored_modules(model, ignore)
    walk = GraphWalk(model, capture(model, example_inputs))
    groups, frozen = _collect(walk)
    kept = [group for group in groups if not _is_ignored(group, ignored)]
    frozen += _freeze([group for group in groups if _is_ignored(group, ignored)], "it is ignored on request")
    working, failures = without_failures(model, example_inputs, kept)
    for group, reason in failures:
        frozen += _freeze([group], reason)
    if not working:
        reasons = sorted({item.reason for item in frozen}) or ["it has no layers with weights"]
        raise UnsupportedModelError(
            f"the model must have channels that can be removed, found none: {'; '.join(reasons[:4])}. "
            f"Prune a network with at least one hidden layer, or shorten `ignore`."
        )
    return Groups(working, frozen)


def _collect(walk: GraphWalk) -> tuple[list[Group], list[Frozen]]:
    """Turn components of labels into groups: units with the same slices, position by position."""
    roots = walk.labels.roots()
    reasons = walk.labels.frozen_roots(roots)
    axes = _all_axes(walk, roots, reasons)
    units = _slices_of_units(axes, roots)
    frozen = _frozen_axes(axes, roots, reasons)
    signatures: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for root, pieces in units.items():
        if root not in reasons:
            signature = tuple(sorted((axis, len(positions)) for axis, positions in pieces.items()))
            signatures.setdefault(signature, []).append(root)
    groups: list[Group] = []
    names: dict[str, int] = {}
    for signature, members in sorted(signatures.items(), key=lambda item: item[0][0]):
        group = _build(
            walk, roots, [axes[axis] for axis, _ in signature], [[units[r][a] for a, _ in signature] for r in members]
        )
        group = _literals(walk, roots, group, members, names)
        if group.num_units > 1:
            groups.append(group)
        else:
            frozen += _freeze([group], "all of its channels depend on each other")
    return groups, frozen


NamedAxis = tuple[str, int, Axis]


def _all_axes(walk: GraphWalk, roots: np.ndarray, reasons: dict[int, str]) -> list[NamedAxis]:
    """List parameter axes in the order of use, those of parameters labelled by element included."""
    axes = [(name, dim, axis) for (name, dim), axis in walk.axes.items()]
    for name, labels in walk.elements.items():
        resolved = roots[labels.numpy()]
        if any(name == other for other, _ in walk.axes):
            reasons.update(dict.fromkeys(np.unique(resolved).tolist(), f"'{name}' is used in two different ways"))
            continue
        varying = [dim for dim in range(resolved.ndim) if (resolved != resolved.take([0], dim)).any()]
        if len(varying) == 1:
            first = labels.movedim(varying[0], 0).flatten(1)[:, 0]
            axes.append((name, varying[0], Axis(first, {"follower"})))
        else:
            why = f"'{name}' ties channels along {len(varying)} axes"
            reasons.update(dict.fromkeys(np.unique(resolved).tolist(), why))
    return axes


def _slices_of_units(axes: list[NamedAxis], roots: np.ndarray) -> dict[int, dict[int, list[int]]]:
    """Return for every root the positions it owns on each axis, in the order of first use."""
    units: dict[int, dict[int, list[int]]] = {}
    for number, (_, _, axis) in enumerate(axes):
        for position, root in enumerate(roots[axis.labels.numpy()].tolist()):
            units.setdefault(root, {}).setdefault(number, []).append(position)
    return units


def _build(walk: GraphWalk, roots: np.ndarray, axes: list[NamedAxis], rows: list[list[list[int]]]) -> Group:
    """Build one group; `rows[u][s]` are the positions of unit u on axis s."""
    del walk, roots
    slices = tuple(
        Slice(param=name, dim=dim, index=tuple(tuple(row[number]) for row in rows), role=_role(axis.roles))
        for number, (name, dim, axis) in enumerate(axes)
    )
    first = next((piece for piece in slices if piece.role == "producer"), slices[0])
    return Group(name=split_name(first.param)[0] or first.param, num_units=len(rows), slices=slices)


def _literals(walk: GraphWalk, roots: np.ndarray, group: Group, members: list[int], names: dict[str, int]) -> Group:
    """Attach the module attributes that count these units, and make the name unique."""
    literals = []
    for use in walk.literals:
        owners = roots[use.labels.numpy()].tolist()
        counts = tuple(owners.count(root) for root in members)
        if any(counts):
            literals.append(Literal(module=use.module, attribute=use.attribute, counts=counts))
    number = names[group.name] = names.get(group.name, 0) + 1
    name = group.name if number == 1 else f"{group.name}#{number}"
    return Group(name=name, num_units=group.num_units, slices=group.slices, literals=tuple(literals))


def _role(roles: set[Role]) -> Role:
    for role in ("producer", "consumer"):
        if role in roles:
            return role
    return "follower"


def _frozen_axes(axes: list[NamedAxis], roots: np.ndarray, reasons: dict[int, str]) -> list[Frozen]:
    frozen = []
    for name, dim, axis in axes:
        found = {reasons[root]: None for root in roots[axis.labels.numpy()].tolist() if root in reasons}
        frozen += [Frozen(param=name, dim=dim, reason=reason) for reason in found]
    return frozen


def _freeze(groups: Iterable[Group], reason: str) -> list[Frozen]:
    return [Frozen(param=piece.param, dim=piece.dim, reason=reason) for group in groups for piece in group.slices]


def _ignored_modules(model: nn.Module, ignore: Sequence[Ignored]) -> set[str]:
    """Resolve modules, types and name patterns to module names (a module stands for everything inside it)."""
    ignored: set[str] = set()
    for entry in ignore:
        found = {name for name, module in model.named_modules(remove_duplicate=False) if _matches(entry, name, module)}
        if not found:
            raise ArgumentError(f"`ignore` must name modules of the model, got {entry!r}. See `model.named_modules()`.")
        ignored |= found
    return ignored


def _matches(entry: Ignored, name: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return fnmatch.fnmatchcase(name, entry)
    return isinstance(module, entry) if isinstance(entry, type) else module is entry


def _is_ignored(group: Group, ignored: set[str]) -> bool:
    return any(owner in ignored for piece in group.slices_with_role("producer") for owner in _owners(piece.param))


def _owners(param: str) -> Iterator[str]:
    """Yield the module that holds a parameter and every module around it."""
    module, _ = split_name(param)
    while module:
        yield module
        module = module.rpartition(".")[0]
