"""The size of the weights: the baseline of most pruning tools."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.slices import weight_rows
from hessprune.structure.groups import Group, producers


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Magnitude(Method):
    """Mean squared weight of the unit, summed over the layers that emit it: `s_u = Σ ‖w_u‖² / numel(w_u)`.

    Data are not read.

    Example:
        >>> import torch, hessprune as hp
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1)), torch.zeros(1, 2)
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
        >>> hp.saliency(net, hp.find_groups(net, x), [(x, x[:, 0].long())], hp.Magnitude())["0"]
        tensor([0.5000, 2.0000, 4.5000], dtype=torch.float64)
    """

    name = "magnitude"
    needs = None

    def needs_whole(self) -> str | None:
        """Return None: one weight after another is gathered."""
        return None

    def score(self, scoring: Scoring) -> Scores:
        """Read the weights."""
        return Scores(values={group.name: _mean_squares(scoring.model, group) for group in scoring.groups})


def _mean_squares(model: nn.Module, group: Group) -> Tensor:
    """Sum the mean squares over the producing slices; units that nothing produces have none."""
    total = torch.zeros(group.num_units, dtype=torch.float64, device="cpu")
    for piece in producers(group):
        total += weight_rows(model, piece).square().mean(1).cpu()
    return total
