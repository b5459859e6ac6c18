"""Kwon et al. 2022, "A fast post-training pruning framework for transformers", arXiv 2204.09656.

1. Fisher information of the gates from gradients `g_b` of the mean loss over batches: `I = Σ_b g_b²`.
2. Search: for each number of heads, the best heads and as many of the best neurons as the budget allows; the number
   that keeps most of `I` counts.
3. Rearrangement: in each sub-layer, every kept unit in turn, the most informative first, enters the pruned set, and the
   unit whose return leaves `‖Σ_{i gone} g_i‖²` least comes back.
4. Tuning: one scale for each kept unit, least squares with damping 1 towards 1, to the outputs (residual included) of a
   teacher pruned to the root of the kept share; not the heads of the first layer; the last neurons at the first
   position alone. Where a scale exceeds 10, tuning ends.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.encoder_rivals.setting import Kept, Setting, Sublayer, cut, gate_gradients, reweighted
from support.encoder_rivals.stream import Stream

DAMPING, LARGEST = 1.0, 10.0
Weights = dict[str, tuple[Tensor, Tensor]]


def batch_gradients(setting: Setting) -> dict[str, Tensor]:
    """Return the gradient of each batch's mean loss in the gates, `{name: (batches, U)}`."""
    whole = {s.name: torch.ones(s.units, dtype=torch.bool) for s in setting.sublayers}
    found = gate_gradients(setting, whole, lambda z, _, y: [F.cross_entropy(z, y)])
    rows = [{name: gradient.sum(0) for name, gradient in batch.items()} for (batch,) in found]
    return {name: torch.stack([row[name] for row in rows]) for name in whole}


def search(setting: Setting, fisher: dict[str, Tensor], excess: float) -> Kept:
    """Return the gates that keep most information within the budget; each sub-layer keeps one unit."""
    kept, best = {}, -1.0
    heads, neurons = ([s for s in setting.sublayers if s.is_attention is kind] for kind in (True, False))
    total = {kind: sum(s.units - 1 for s in part) for kind, part in ((True, heads), (False, neurons))}
    for gone_heads in range(total[True] + 1):
        left = excess - (gone_heads * heads[0].cost if heads else 0.0)
        gone_neurons = max(0, -int(-left // neurons[0].cost)) if neurons else 0
        if gone_neurons > total[False] or (not neurons and left > 1e-6):
            continue
        found = drop_least(heads, fisher, gone_heads) | drop_least(neurons, fisher, gone_neurons)
        score = sum(float(fisher[name][mask].sum()) for name, mask in found.items())
        if score > best:
            kept, best = found, score
    return kept


def drop_least(part: Sequence[Sublayer], fisher: dict[str, Tensor], number: int) -> Kept:
    """Drop so many units of least information, but for one in each sub-layer."""
    kept = {s.name: torch.ones(s.units, dtype=torch.bool) for s in part}
    ranked = []
    for s in part:
        order = fisher[s.name].argsort()[:-1].tolist()
        ranked += [(float(fisher[s.name][unit]), s.name, unit) for unit in order]
    for _, name, unit in sorted(ranked)[:number]:
        kept[name][unit] = False
    return kept


def rearrange(kept: Tensor, gradients: Tensor) -> Tensor:
    """Exchange units of one sub-layer, `(U,)` and `(batches, U)`, as many staying as before."""
    kept = kept.clone()
    total = gradients[:, ~kept].sum(1)
    if bool(kept.all()):
        return kept
    for unit in sorted(kept.nonzero().flatten().tolist(), key=lambda u: -float(gradients[:, u].square().sum())):
        total = total + gradients[:, unit]
        kept[unit] = False
        gone = (~kept).nonzero().flatten()
        back = gone[(total[:, None] - gradients[:, gone]).square().sum(0).argmin()]
        kept[back] = True
        total = total - gradients[:, back]
    return kept


def scales(stream: Stream, sublayer: Sublayer, kept: Kept, goals: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Return one scale for each kept unit, 1 elsewhere, by damped least squares to the teacher's sums."""
    reader = stream.setting.reader(sublayer)
    units = kept[sublayer.name].nonzero().flatten()
    inputs = torch.arange(sublayer.units * sublayer.width).view(sublayer.units, -1)[units].flatten()
    weight = reader.weight[:, inputs].double().T  # (K, O)
    gram, product = 0.0, 0.0
    for (x, whole, _), goal, some in zip(stream.seen(sublayer, kept), goals, rows, strict=True):
        x, error = x[some][:, inputs], (goal - whole)[some]
        gram = gram + (x.T @ x).double()
        product = product + ((x.T @ error).double() * weight).sum(1)
    shape = (len(units), sublayer.width)
    assert isinstance(product, Tensor)
    right = product.view(shape).sum(1)
    left = (gram * (weight @ weight.T)).view(*shape, *shape).sum((1, 3))
    found = torch.linalg.solve(left + DAMPING * torch.eye(len(units), dtype=left.dtype), right)
    result = torch.ones(sublayer.units)
    result[units] += found.float()
    return result


def tune(setting: Setting, kept: Kept, teacher: Kept) -> Weights:
    """Return the readers' weights with the scales in them."""
    weights: Weights = {}
    asked, given = Stream(setting), Stream(setting)
    for number, sublayer in enumerate(setting.sublayers):
        if number == 0 and sublayer.is_attention:
            continue
        goals = [whole for _, whole, _ in asked.seen(sublayer, teacher)]
        rows = [torch.arange(len(goal)) for goal in goals]
        if setting.reads_first and number == len(setting.sublayers) - 1 and not sublayer.is_attention:
            pairs = zip(setting.batches, goals, strict=True)
            rows = [first_positions(inputs, len(labels), len(goal)) for (inputs, labels), goal in pairs]
        with reweighted(setting, weights):
            found = scales(given, sublayer, kept, goals, rows)
        if bool(found.abs().max() > LARGEST):
            break
        reader = setting.reader(sublayer)
        weights[sublayer.reader] = (reader.weight.data * sublayer.spread(found), reader.bias.data)
    return weights


def first_positions(inputs: dict[str, Tensor], samples: int, number: int) -> Tensor:
    """Return the row of each sample's first position, among a number of rows that are no padding."""
    mask = inputs.get("attention_mask")
    lengths = torch.full((samples,), number // samples) if mask is None else mask.sum(1)
    return lengths.cumsum(0) - lengths


def kwon(setting: Setting, *, tuned: bool = True) -> nn.Module:
    """Prune by search, rearrangement and tuning."""
    gradients = setting.once(batch_gradients)
    fisher = {name: g.square().sum(0) for name, g in gradients.items()}
    kept = search(setting, fisher, setting.excess)
    kept = {name: rearrange(mask, gradients[name]) for name, mask in kept.items()}
    if not tuned:
        return cut(setting, kept)
    dense = sum(s.units * s.cost for s in setting.sublayers)
    teacher = search(setting, fisher, dense - (dense * (dense - setting.excess)) ** 0.5)
    teacher = {name: rearrange(mask, gradients[name]) for name, mask in teacher.items()}
    with torch.no_grad():
        return cut(setting, kept, tune(setting, kept, teacher))
