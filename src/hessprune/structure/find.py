"""Find the groups of coupled units of any model: capture its graph, run it on labels, collect groups, try them out."""

import fnmatch
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.arrival import plain_modules, watched
from hessprune.foundation.modules import split_name
from hessprune.foundation.parametrised import check_plain_weights
from hessprune.structure.advice import ON_REQUEST, advice, telling
from hessprune.structure.cached import without_fixed_states
from hessprune.structure.capture import capture, capture_training
from hessprune.structure.collect import Collected, collect
from hessprune.structure.groups import KINDS, Frozen, Group, Groups, Ignored, Kind
from hessprune.structure.kinds import check_kinds, only
from hessprune.structure.queries import by_queries, check_mode, with_share
from hessprune.structure.sizes import without_failures
from hessprune.structure.unreached import advice_on, unreached_layers, unread_parameters
from hessprune.structure.walk import GraphWalk

_log = logging.getLogger(__name__)


def find_groups(
    model: nn.Module,
    example_inputs: Any,
    ignore: Sequence[Ignored] = (),
    *,
    compare: bool = False,
    gqa: str = "kv-group",
    units: Collection[Kind] | None = None,
) -> Groups:
    """Find all removable units (channels, neurons, heads), each with all slices that must go with it.

    Runs the `torch.export` graph of the model on labels. Each index of each parameter axis has a label; shape operators
    move labels, and labels that meet are tied. Tied labels are one unit, and units with the same slices form a group.
    Units that reach the model's input or output, or an operator without a rule, are frozen, with the reason. A trial
    then removes one unit of every group (on the meta device) and freezes groups of a size that the source code fixes.
    With `compare`, as in `hp.prune`, a second trial slices some units of every group off one copy of the model and
    masks them in another: two forwards, in float64 where the model allows it. Groups for which the outputs differ are
    frozen, too.

    Cost: one export, forwards without arithmetic and, with `compare`, two copies of the model and two forwards in
    float64. No data are read.

    Args:
        model: Any module that `torch.export` captures; it is left untouched.
        example_inputs: A tensor, a tuple of positional, or a dict of keyword arguments. Its numbers matter for the
            second trial alone; random ones stand in for zeros.
        ignore: Layers whose outputs must keep their width: modules, module types, or name patterns (`"layer1.*"`).
        compare: Make the second trial; without it `hp.apply_plan` refuses where slicing is not masking.
        gqa: What leaves attention whose queries share keys and values: `"kv-group"`, a head of keys and values with its
            queries; `"even-queries"`, as many queries of every such head; `"free-queries"`, any query. The last two are
            refused where one layer makes keys and values, as in Phi-3; of a model that has both kinds, such attention
            loses whole heads of keys, and a warning names it.
        units: Kinds of units to find; None for heads, neurons, channels, and embeddings that no norm reads. With
            `"embedding"`, channels that a LayerNorm or RMSNorm normalises may go, too; the norm then normalises the
            channels that stay. With `"qk"` and `"v"`, the same widths go from all heads of a layer: from queries and
            keys together, from values, or from all three where the source code gives them one size. Scores stay
            divided by the root of the dense width. Where `"heads"` are asked for, too, and may go, their widths stay.

    Returns:
        The groups in the order of use; `.frozen` lists every axis that cannot shrink, with the reason;
        `.unreached` the layers that these inputs do not reach, of which a warning tells, too.

    Raises:
        UnsupportedModelError: The model cannot be captured, or nothing in it can be pruned.
        ArgumentError: An entry of `ignore` matches no module of the model, `gqa` is no such mode or none that the
            model can follow, or the model has no units of the kinds in `units`.

    Example:
        >>> import torch, hessprune as hp
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> print(hp.find_groups(net, torch.zeros(1, 3, 8, 8))[0])
        0: 8 channels
          producer 0.weight dim 0
          follower 0.bias dim 0
          follower 1.weight dim 0
          follower 1.bias dim 0
          follower 1.running_mean dim 0
          follower 1.running_var dim 0
          consumer 3.weight dim 1
    """
    check_mode(gqa)
    check_kinds(units)
    with watched(model) as plain:
        ignored = _ignored_modules(model, ignore)
        try:
            found = _of_kinds(plain, example_inputs, ignored, compare=compare, gqa=gqa, kinds=units or ())
            groups = only(found, units)
        except UnsupportedModelError:
            check_plain_weights(model)  # a likely cause, with its remedy
            raise
    if groups.unreached:
        _log.warning("%s", advice_on(groups.unreached))
    return groups


def _of_kinds(
    model: nn.Module, example_inputs: Any, ignored: set[str], *, compare: bool, gqa: str, kinds: Collection[Kind]
) -> Groups:
    """Find the groups of a plain model; where heads may go, the widths within them stay."""
    find = partial(_found, model, example_inputs, ignored, compare=compare, gqa=gqa)
    widths: list[Kind] = [kind for kind in KINDS if kind in {"qk", "v"} & {*kinds}]
    if not widths or "heads" not in kinds:
        return find(kinds=kinds)
    groups, inner = find(kinds=[kind for kind in kinds if kind not in widths]), find(kinds=widths)
    taken = {(piece.param, piece.dim) for group in groups for piece in group.slices}
    found = [group for group in inner if group.kind in widths]
    free = [group for group in found if not any((piece.param, piece.dim) in taken for piece in group.slices)]
    return Groups((*groups, *free), groups.frozen, groups.unreached)


def _found(
    model: nn.Module, example_inputs: Any, ignored: set[str], *, compare: bool, gqa: str, kinds: Collection[Kind]
) -> Groups:
    """Find the groups of a plain model, without those of the ignored modules."""
    walk, unread = _walk(model, example_inputs, kinds)
    collected = collect(walk)
    groups, frozen, written = collected.groups, collected.frozen, collected.written
    kept = [group for group in groups if not _is_ignored(group, ignored)]
    frozen += _freeze([group for group in groups if _is_ignored(group, ignored)], ON_REQUEST)
    if gqa != "kv-group":
        kept, staying = by_queries(model, before := kept, gqa)
        frozen += staying
        written = {group.name: written[group.name] for group in kept if group in before}
    kept = [with_share(model, group) for group in kept]
    working, failures = without_failures(model, example_inputs, kept, written, compare=compare)
    if pairs := _failed_pairs(collected, failures) if {"qk", "v"} <= {*kinds} else []:
        apart = {part.name for first, second, _ in pairs for part in (first, second)}
        failures = [(group, reason) for group, reason in failures if group.name not in apart]
        together = [both for _, _, both in pairs]
        working, more = without_failures(model, example_inputs, [*working, *together], written, compare=compare)
        failures += more
    working, stuck = without_fixed_states(model, example_inputs, working)
    failures += stuck
    for group, reason in failures:
        frozen += _freeze([group], reason)
    if not working:
        reasons = telling({item.reason for item in frozen}) or ["it has no layers with weights"]
        raise UnsupportedModelError(
            f"the model must have channels that can be removed, found none: {'; '.join(reasons[:4])}. {advice(reasons)}"
        )
    unreached = [name for name in unreached_layers(model, unread, working) if ignored.isdisjoint(_around(name))]
    return Groups(working, dict.fromkeys(frozen), unreached)


def _failed_pairs(collected: Collected, failures: Iterable[tuple[Group, str]]) -> list[tuple[Group, Group, Group]]:
    """Return the widths of queries and keys, and of values, that the forward does not let go one without the other."""
    failed = {group.name for group, _ in failures}
    return [pair for pair in collected.pairs if {pair[0].name, pair[1].name} <= failed]


def _walk(model: nn.Module, example_inputs: Any, kinds: Collection[Kind]) -> tuple[GraphWalk, list[str]]:
    """Walk the graph of evaluation; if it skips parameters (auxiliary heads), walk the graph of training, too.

    The names are those of parameters that neither reads.
    """
    program = capture(model, example_inputs)
    unread = unread_parameters(model, [program])
    training = capture_training(model, example_inputs) if unread else None
    programs = [program] if training is None else [program, training]
    unread = unread_parameters(model, programs) if training else unread
    walk = GraphWalk(model, programs, asked=kinds)
    stuck, shared = walk.stuck(), walk.shared()
    while stuck.keys() - walk.stays.keys() or shared - walk.sharing:
        walk = GraphWalk(model, programs, walk.stays | stuck, shared=walk.sharing | shared, asked=kinds)
        stuck, shared = walk.stuck(), walk.shared()
    return walk, unread


def _freeze(groups: Iterable[Group], reason: str) -> list[Frozen]:
    """List all slices of some groups as frozen."""
    return [Frozen(param=piece.param, dim=piece.dim, reason=reason) for group in groups for piece in group.slices]


def _ignored_modules(model: nn.Module, ignore: Sequence[Ignored]) -> set[str]:
    """Resolve modules, types and name patterns to names of modules."""
    ignored: set[str] = set()
    for entry in [ignore] if isinstance(ignore, str | type | nn.Module) else ignore:
        names = {name for name, module in plain_modules(model) if _matches(entry, name, module)}
        if not names:
            raise ArgumentError(f"`ignore` must name modules of the model, got {entry!r}. See `model.named_modules()`.")
        ignored |= names
    return ignored


def _matches(entry: Ignored, name: str, module: nn.Module) -> bool:
    """Return whether an entry of `ignore` means a module."""
    if isinstance(entry, str):
        return fnmatch.fnmatchcase(name, entry)
    return isinstance(module, entry) if isinstance(entry, type) else module is entry


def _is_ignored(group: Group, ignored: set[str]) -> bool:
    """Return whether an ignored module holds a producer of a group, directly or deeper inside."""
    return any(owner in ignored for piece in group.slices_with_role("producer") for owner in _owners(piece.param))


def _owners(param: str) -> Iterator[str]:
    """Yield the module that holds a parameter and every module around it."""
    yield from _around(split_name(param)[0])


def _around(module: str) -> Iterator[str]:
    """Yield a module and every one around it."""
    while module:
        yield module
        module = module.rpartition(".")[0]
