"""Widen groups of a model: more units, the same outputs, and new weights that can learn."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal as Choice

import torch
from torch import nn

from hessprune.costs.model import cost
from hessprune.errors import ArgumentError, VerificationError
from hessprune.foundation.arrival import observed, watched
from hessprune.foundation.checks import check_choice, check_finite_parameters, check_range
from hessprune.foundation.formatting import first_line, shortened, shown
from hessprune.foundation.modules import DEVICE_FAILURES
from hessprune.foundation.tensors import named_tensors
from hessprune.planning.inputs import describe_inputs
from hessprune.planning.widening import Widening
from hessprune.structure.comparison import TOLERANCE, compare
from hessprune.structure.enlarging import Enlarged, enlarged_groups
from hessprune.structure.find import find_groups
from hessprune.structure.groups import Group, Ignored, producers
from hessprune.structure.inserting import axes_of, insert_copies
from hessprune.surgery.config import fit_config
from hessprune.surgery.result import Result
from hessprune.surgery.starting import begin, living_units

Start = Choice["split", "fresh"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class WidenResult(Result):
    """A wider model with the outputs of the old one, and how it came about."""

    plan: Widening


def widen(
    model: nn.Module,
    example_inputs: Any,
    widths: Mapping[str, int],
    *,
    start: Start = "split",
    ignore: Sequence[Ignored] = (),
    seed: int = 0,
) -> WidenResult:
    """Put more units into groups of a model, so that its outputs stay and the new units can learn.

    The inverse of surgery, for every group of `find_groups` that weights read: residual streams, concatenations,
    grouped convolutions and heads included. A new unit stands beside an old one, its parent, drawn at random among
    those that some weight produces.

    - `"split"`: it copies its parent, and both share what reads the parent: of `k` copies each gets `w / k + δ`, where
      the random `δ` sum to zero. The outputs stay, the gradients differ. BatchNorm's statistics are right at once.
      Copies of a unit that never fires, as with a large negative bias before a ReLU, learn no more than it does.
    - `"fresh"`: random weights of the layer's own spread, read with weights zero. What reads them learns first.

    Parameters are new ones; make the optimizer anew.

    Args:
        model: Left untouched.
        example_inputs: One batch as the model takes it; the outputs are compared on it, in float64.
        widths: Number of units afterwards, by name of the group or of any layer that produces its units.
        start: Weights of the new units.
        ignore: Modules, types or name patterns to leave out, as for `find_groups`.
        seed: For parents and weights.

    Returns:
        The new model in the mode of the old one, the widening, and the cost before and after.

    Raises:
        ArgumentError: A name is unknown, or a width is smaller than the present one.
        NumericalError: Weights are not finite, or hold no numbers.
        UnsupportedModelError: The model has no groups.
        VerificationError: The wider model gives other outputs, since its forward fixes a size, or a weight is used in
            two places (tied embeddings); the line names the groups.

    References:
        Chen, Goodfellow and Shlens, Net2Net, ICLR 2016.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(5, 4)
        >>> wider = hp.widen(net, x, {"0": 12})
        >>> wider.model[0].out_features, bool((wider.model(x) - net(x)).abs().max() < 1e-5)
        (12, True)
    """
    check_choice("start", start, ("split", "fresh"))
    check_range("seed", seed, low=0, integer=True)
    check_finite_parameters(observed(model))
    groups = find_groups(model, example_inputs, ignore, compare=True)
    more = _more(groups, widths)
    with watched(model) as dense:
        parents = {name: _drawn(living_units(dense, group), number, seed) for name, (group, number) in more.items()}
        wide = enlarged_groups(groups, parents, axes_of(groups, dense))
        exact = _widened(copy.deepcopy(dense).double(), wide, "split", seed)  # zeros would hide a misplaced unit
        reason = _difference(dense, exact, example_inputs)
        if reason is not None:
            names = [name for name in more if not grows(dense, example_inputs, groups, name)] or [*more]
            listed = ", ".join(map(repr, names))
            raise VerificationError(f"{reason} Leave {listed} out of `widths`.")
        wider = _widened(copy.deepcopy(dense), wide, start, seed)
        fit_config(wider, groups, {name: group.num_units + number for name, (group, number) in more.items()})
        before, after = cost(dense, example_inputs), cost(wider, example_inputs)
    widening = Widening(
        groups=wide.groups,
        added=wide.added,
        parents=wide.parents,
        cost_before=before,
        cost_after=after,
        inputs=describe_inputs(example_inputs),
        shapes=_shapes(dense, wide.groups),
        provenance={"start": start, "seed": seed},
    )
    return WidenResult(model=wider, plan=widening, cost_before=before, cost_after=after)


def _more(groups: Sequence[Group], widths: Mapping[str, int]) -> dict[str, tuple[Group, int]]:
    """Return the groups that grow, each with its number of new units."""
    if not isinstance(widths, Mapping) or not widths:
        raise ArgumentError(
            f"`widths` must be numbers of units by name of a group, got {shown(widths)}. Pass "
            "{group.name: units} for groups of hp.find_groups(model, example_inputs)."
        )
    owners = {piece.param.rpartition(".")[0]: group for group in reversed(groups) for piece in producers(group)}
    owners |= {group.name: group for group in groups}
    more: dict[str, tuple[Group, int]] = {}
    for name, width in widths.items():
        if name not in owners:
            known = shortened([repr(group.name) for group in groups])
            raise ArgumentError(
                f"`widths` must name groups of the model, got {shown(name)}. The groups are {known}: see "
                "hp.find_groups(model, example_inputs).table()."
            )
        group = owners[name]
        check_range(f"widths[{name!r}]", width, low=group.num_units, integer=True)
        if more.setdefault(group.name, (group, width - group.num_units))[1] != width - group.num_units:
            raise ArgumentError(
                f"`widths` must agree on group {group.name!r}, got {shown(dict(widths))}. Name it once."
            )
    return {name: found for name, found in more.items() if found[1]}


def _drawn(units: Sequence[int], number: int, seed: int) -> list[int]:
    """Return a parent for each new unit: every unit once before one has its turn again."""
    generator, drawn = torch.Generator().manual_seed(seed), []
    while len(drawn) < number:
        drawn += [units[place] for place in torch.randperm(len(units), generator=generator, device="cpu").tolist()]
    return drawn[:number]


def _widened(model: nn.Module, wide: Enlarged, start: str, seed: int) -> nn.Module:
    """Put the new units into a model, in place, and return it."""
    insert_copies(model, wide.groups, wide.added, wide.parents)
    begin(model, wide.groups, wide.added, wide.parents, start=start, seed=seed)
    return model


def grows(model: nn.Module, example_inputs: Any, groups: Sequence[Group], name: str) -> bool:
    """Return whether a model with one more unit in one of its groups gives the same outputs."""
    wide = enlarged_groups(groups, {name: [0]}, axes_of(groups, model))
    return _difference(model, _widened(copy.deepcopy(model).double(), wide, "split", 0), example_inputs) is None


def _difference(dense: nn.Module, wide: nn.Module, inputs: Any) -> str | None:
    """Return why two models do not give the same outputs; None if they do."""
    try:
        found, dtype = compare(lambda _: copy.deepcopy(dense), wide, inputs)
    except DEVICE_FAILURES:
        raise
    except Exception as error:  # the user's forward may raise anything
        return (
            f"the wider model must run on the example inputs, but its forward failed: {first_line(error)}. A size is "
            "fixed in its source code."
        )
    if found <= TOLERANCE[dtype]:
        return None
    return (
        f"the wider model must give the outputs of the old one, but they differ by {found:.2e} (relative, {dtype}). "
        "Its forward treats channels by position, or no weight of its own reads them (tied embeddings)."
    )


def _shapes(model: nn.Module, groups: Sequence[Group]) -> dict[str, tuple[int, ...]]:
    names = {piece.param for group in groups for piece in group.slices}
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model) if name in names}
