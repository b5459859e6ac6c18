"""Two ways to take units out: delete their slices, or set them to zero. Both give the same function."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group, Literal, Slice
from hessprune.structure.masking import Followers, mask_groups


def slice_units(model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> None:
    """Delete the removed units' slices from a dense model, in place; sizes of the layers follow."""
    remove_slices(model, list(_cuts(groups, removed)))


def mask_units(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]], *, followers: Followers = "all"
) -> None:
    """Set slices of the removed units to zero, in place; the model keeps its shape.

    Consumers multiply the unit by zero, so this is exact also for activations with f(0) ≠ 0. Norms over the embedding
    see the channels that stay alone.

    Args:
        model: The dense model.
        groups: Its groups.
        removed: Units by group name.
        followers: Which biases, normalisations and stored deviations become zero, too; they must not where the model
            divides by one of them.
    """
    mask_groups(model, [(group, removed.get(group.name, ())) for group in groups], followers)


def _cuts(
    groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Slice | Literal, Sequence[int]]]:
    for group in groups:
        units = removed.get(group.name, ())
        for piece in (*group.slices, *group.literals) if units else ():
            yield piece, units
