"""Park, Choi & Kang 2024, "Accurate retraining-free pruning for pretrained encoder-based language models" (K-prune).

From bottom to top, for each sub-layer: score the units of this and all later sub-layers,

    S = ½ λ_p E (∂KL/∂m)² + λ_r ‖a‖² mean(W²) / tokens ,

heads times 64, per operation; the threshold over all of them that leaves the budget prunes this sub-layer alone; least
squares refit its output weights, so that the residual sum is that of the dense model; the rest of the budget goes on.
The divergence is from the dense outputs at temperature 2. Its gradient is zero at the dense model: the expectation of
the square is taken over classes drawn from the dense outputs, which is the curvature that the square stands for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from support.encoder_rivals.kwon import Weights
from support.encoder_rivals.least_squares import to_dense_sum
from support.encoder_rivals.setting import (
    Kept,
    Setting,
    Sublayer,
    cut,
    gate_gradients,
    reweighted,
)
from support.encoder_rivals.stream import Stream

TEMPERATURE, PREDICTION, REPRESENTATION, HEADS = 2.0, 1.0, 2.5e-4, 64.0


@torch.no_grad()
def dense_logits(setting: Setting) -> list[Tensor]:
    """Return the dense model's outputs for each batch."""
    return [setting.logits(inputs) for inputs, _ in setting.batches]


def predictive(stream: Stream, kept: Kept, since: int) -> dict[str, Tensor]:
    """Return `E (∂ log q_c / ∂m)²` over samples and classes `c` of the dense outputs, for sub-layers from `since`."""
    setting = stream.setting
    dense = setting.once(dense_logits)
    classes = dense[0].shape[1]

    def objective(logits: Tensor, number: int, labels: Tensor) -> list[Tensor]:
        del labels
        logs = (logits / TEMPERATURE).log_softmax(1)
        root = (dense[number] / TEMPERATURE).softmax(1).sqrt()
        if classes == 2:  # both gradients are along the difference of the logits
            q, p = logs.detach().exp(), root.square()
            size = (p * q.flip(1).square()).sum(1).sqrt()
            return [(size * (logits[:, 0] - logits[:, 1]) / TEMPERATURE).sum()]
        return [(root[:, c] * logs[:, c]).sum() for c in range(classes)]

    total: dict[str, Tensor] = {}
    for found in gate_gradients(setting, kept, objective, since=since, logits=stream.logits):
        for gradients in found:
            for name, gradient in gradients.items():
                total[name] = total.get(name, 0.0) + gradient.square().sum(0) / setting.samples
    return total


@contextmanager
def listening(setting: Setting, since: int) -> Iterator[dict[str, Tensor]]:
    """Add up the squares of all inputs of the units of sub-layers from `since`, `{name: (U,)}`."""
    squares: dict[str, Tensor] = {}

    def listener(sublayer: Sublayer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def listen(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            energy = args[0].detach().square().flatten(0, -2).sum(0).view(sublayer.units, -1).sum(1)
            squares[sublayer.name] = squares.get(sublayer.name, 0.0) + energy

        return listen

    handles = [setting.reader(s).register_forward_pre_hook(listener(s)) for s in setting.sublayers[since:]]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()


def knowledge(stream: Stream, kept: Kept, since: int) -> dict[str, Tensor]:
    """Return the score per operation of the units of the sub-layers from `since`."""
    setting = stream.setting
    stream.start(setting.sublayers[since], kept)
    with listening(setting, since) as squares:
        prediction = predictive(stream, kept, since)
    tokens, scores = sum(inputs[next(iter(inputs))].shape[:2].numel() for inputs, _ in setting.batches), {}
    for s in setting.sublayers[since:]:
        size = setting.reader(s).weight.square().mean(0).view(s.units, -1).mean(1)
        score = PREDICTION * prediction[s.name] / 2 + REPRESENTATION * squares[s.name] * size / tokens
        scores[s.name] = score * (HEADS if s.is_attention else 1.0) / s.cost
    return scores


def allowed(setting: Setting, scores: dict[str, Tensor], since: int, excess: float) -> Tensor:
    """Return which units of sub-layer `since` stay, when the least scores of this and later ones go."""
    ranked = sorted(
        (float(value), number, unit)
        for number, s in enumerate(setting.sublayers[since:], since)
        for unit, value in enumerate(scores[s.name])
    )
    left = {number: s.units for number, s in enumerate(setting.sublayers)}
    kept = torch.ones(setting.sublayers[since].units, dtype=torch.bool)
    for _, number, unit in ranked:
        if excess <= 1e-6:
            break
        if left[number] > 1:
            left[number] -= 1
            excess -= setting.sublayers[number].cost
            if number == since:
                kept[unit] = False
    return kept


def kprune(setting: Setting) -> nn.Module:
    """Prune and refit sub-layer by sub-layer."""
    kept: Kept = {s.name: torch.ones(s.units, dtype=torch.bool) for s in setting.sublayers}
    weights: Weights = {}
    excess = setting.excess
    whole, pruned = Stream(setting), Stream(setting)
    for number, sublayer in enumerate(setting.sublayers):
        dense = [total for _, total, _ in whole.seen(sublayer)]
        with reweighted(setting, weights):
            scores = knowledge(pruned, kept, number)
            kept[sublayer.name] = allowed(setting, scores, number, excess)
            if weights or not bool(kept[sublayer.name].all()):  # nothing is wrong before the first loss
                weights[sublayer.reader] = to_dense_sum(pruned, sublayer, kept, dense)
        excess -= sublayer.cost * int((~kept[sublayer.name]).sum())
    return cut(setting, kept, weights)
