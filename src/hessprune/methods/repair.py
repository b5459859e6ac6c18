"""The joint criterion where survivors will compensate: what a removal costs after the refit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature.repair import repaired_losses
from hessprune.methods.gates import role_slices
from hessprune.methods.scores import Scores, Settings
from hessprune.structure.groups import Group


def repaired(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    """Loss increase of each unit given that those before it are gone and that every reading layer has been refitted.

    Within a group, units are eliminated one by one, interactions and compensation included; a unit's value is the step
    of the measured loss at its turn. Steps are averaged where a later one is smaller, so that ranking by value removes
    units in that order.
    """
    slices = role_slices(groups, "consumer")
    found = repaired_losses(
        model,
        slices,
        batches,
        loss_fn=settings.loss_fn,
        precision=settings.precision,
        seed=settings.seed,
        options=settings.options,
    )
    values = {group.name: torch.zeros(group.num_units, dtype=torch.float64) for group in groups}
    for name, repair in found.items():
        values[name][repair.order] = _rising(repair.loss.diff(prepend=repair.loss.new_zeros(1)))
    return Scores(values=values, facts={"compensated": True})


def _rising(steps: Tensor) -> Tensor:
    """Return the nearest strictly rising sequence: means over blocks (pool adjacent violators), then a nudge."""
    blocks: list[tuple[float, int]] = []
    for step in steps.tolist():
        blocks.append((step, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (right, n), (left, m) = blocks.pop(), blocks.pop()
            blocks.append(((left * m + right * n) / (m + n), m + n))
    level = torch.cat([torch.full((n,), value, dtype=torch.float64) for value, n in blocks]).clamp(min=0)
    nudge = 1e-9 * max(float(level.max()), 1e-30) / len(level)
    return level + nudge * torch.arange(len(level), dtype=torch.float64)
