"""Choose the objective: the loss that is given, cross-entropy for labels, or the distance to the dense outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.arguments import argument_names
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_labels
from hessprune.foundation.losses import are_labels, as_cross_entropy, as_labels, check_class_axis, squeeze_remedy
from hessprune.foundation.misfits import batching
from hessprune.foundation.modules import device_of, forward, logits_of
from hessprune.foundation.named_losses import loss_of
from hessprune.foundation.processes import is_own, summed
from hessprune.foundation.progress import track
from hessprune.foundation.returned import check_average
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.texts import are_words_last, by_name, tokens_of
from hessprune.foundation.trees import describe, leading_size, sample_rows, to_device
from hessprune.foundation.words import next_word, own_words, predicted_words, shifts_words
from hessprune.objectives.closed_form import module_of
from hessprune.objectives.dense import DenseOutputs, Part
from hessprune.objectives.given import GivenLoss
from hessprune.objectives.next_words import NextWordLoss
from hessprune.objectives.objective import Objective
from hessprune.objectives.outputs import Outputs, targets_of

Prefer = Literal["dense outputs", "labels", "gradient"]
"""Without a loss: the dense outputs; a cross-entropy where there are labels; or nothing else than that."""
MAX_LOGITS, MIN_POSITIONS, MANY_POSITIONS = 2**20, 8, 512
"""Logits of a sample that count at once, and for how few and how many positions: 8 MB for each copy in 64 bits."""
Chosen = Sequence[str] | Mapping[str, float] | None
"""Names of outputs, with weights if it is a mapping; all outputs if None."""


def choose_objective(
    model: nn.Module,
    batches: Any,
    loss_fn: Any = None,
    *,
    outputs: Chosen = None,
    prefer: Prefer = "dense outputs",
    asker: str = "this method",
) -> Objective:
    """Return the objective that a loss, the data and a model's outputs call for.

    Takes one forward pass over two samples; where outputs are no classes, one over all samples for their deviation.

    Args:
        model: The dense model; it is left as it was.
        batches: Re-iterable of inputs alone, `(inputs, targets)`, or mappings with labels inside.
        loss_fn: A loss of `(output, targets)`, its name, or an objective; it overrides everything else.
        outputs: Names of the outputs that are compared, or their weights by name.
        prefer: What decides if there is no loss.
        asker: What messages call the caller.

    Returns:
        The objective.

    Raises:
        ArgumentError: `outputs` names none, a weight is no positive number, or no loss has the name.
        DataError: A gradient is asked for and there are no labels, or targets do not fit, or the logits of a language
            model are given to cross-entropy.

    Example:
        >>> import torch
        >>> choose_objective(torch.nn.Linear(2, 3), [torch.randn(8, 2)]).facts()
        {'loss': 'dense outputs', 'outputs': {'output': 'divergence'}}
    """
    if isinstance(loss_fn, Objective):
        return loss_fn
    loss_fn, batches = loss_of(loss_fn), Rereadable.of(batches, model)
    inputs, targets = next(iter(batches))
    if loss_fn is next_word:
        return _next_words(model, inputs, targets)
    if loss_fn is not None:
        check_average(loss_fn)
        if as_cross_entropy(loss_fn) is not None and tokens_of(inputs) is not None:
            check_class_axis(_for_all(logits_of(_run(model, inputs, [0])), leading_size(inputs)), targets, inputs)
        return GivenLoss(loss_fn=loss_fn, outputs=None if module_of(loss_fn) else _outputs_of(model, inputs))
    pair, alone = _run(model, inputs, [0, -1]), _run(model, inputs, [0])
    _check_targets(targets, leading_size(inputs))
    every = Outputs.find(pair, alone)
    logits = _for_all(logits_of(pair), leading_size(inputs))
    if prefer != "dense outputs" and are_labels(logits, targets) and not are_words_last(logits, inputs):
        return GivenLoss(loss_fn=None)
    if prefer == "gradient":
        raise DataError(
            f"`batches` must hold labels for {asker}, which needs the gradient of a loss, got targets "
            f"{describe(targets)} for outputs {describe(alone)}. {squeeze_remedy(logits, targets)}Give (inputs, "
            "labels), or the loss as `loss_fn`, of a language model 'next_word'."
        )
    shares = _shares(outputs)
    reading = every.counting() if shares is None else every.only([*shares])
    tensors = dict(zip(reading.names, reading.parts(pair, 2), strict=True))
    known = _Known(outputs=every.counting(), inputs=inputs, targets=targets, pair=pair)
    parts = tuple(known.part(name, tensor) for name, tensor in tensors.items())
    total = len(parts) if shares is None else sum(shares.values())
    parts = tuple(replace(part, share=(1.0 if shares is None else shares[part.name]) / total) for part in parts)
    objective = DenseOutputs(outputs=reading, parts=parts, names=argument_names(model))
    return objective if all(part.rule == "divergence" for part in parts) else _measured(objective, model, batches)


def _next_words(model: nn.Module, inputs: Any, targets: Any) -> NextWordLoss:
    """Return the loss of the next word, once the words of a first batch fit the model."""
    shift, names = shifts_words(model), argument_names(model)
    if targets is None:
        own_words(by_name(names, inputs), shift=shift, asker="next_word")
    logits = logits_of(_run(model, inputs, [0, -1]))
    predicted_words(
        _for_all(logits, leading_size(inputs)), by_name(names, inputs), targets, shift=shift, asker="next_word"
    )
    return NextWordLoss(loss_fn=None, shift=shift, names=names, positions=_fewer(logits))


def _outputs_of(model: nn.Module, inputs: Any) -> Outputs:
    return Outputs.find(_run(model, inputs, [0, -1]), _run(model, inputs, [0]))


@torch.no_grad()
def _run(model: nn.Module, inputs: Any, rows: list[int]) -> Any:
    with evaluation_mode(model):
        return forward(model, to_device(sample_rows(inputs, torch.tensor(rows, device="cpu")), device_of(model)))


def _for_all(logits: Tensor, samples: int) -> Tensor:
    """Return logits of the shape that a whole batch has, from those of two samples."""
    return logits[:1].expand(samples, *logits.shape[1:]) if logits.dim() else logits


def _check_targets(targets: Any, samples: int) -> None:
    """Raise unless integer targets hold one entry for each sample."""
    is_label = isinstance(targets, Tensor) and not targets.is_floating_point()
    if is_label and (targets.dim() == 0 or len(targets) != samples):
        raise DataError(
            f"targets in `batches` must hold one entry for each of {samples} samples, got {describe(targets)}. "
            "Give as many targets as inputs, inputs alone, or the loss that takes these targets as `loss_fn`."
            f"{batching(targets)}"
        )


def _shares(outputs: Chosen) -> dict[str, float] | None:
    if outputs is None:
        return None
    if isinstance(outputs, str) or not isinstance(outputs, Mapping | Sequence) or not outputs:
        raise ArgumentError(
            f"`outputs` must be names of outputs, or weights by name, got {outputs!r}. Use outputs=['logits']."
        )
    shares = dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(outputs, 1.0)
    for name, share in shares.items():
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < float("inf"):
            raise ArgumentError(f"`outputs` must weigh {name!r} by a positive number, got {share!r}. Use 1.0.")
    return shares


def _positions(logits: Tensor, tokens: Tensor | None) -> int | None:
    """Return how many positions of logits `(N, T, C)` count, if not all: those for which the memory suffices."""
    return None if tokens is None or tokens.shape[1] != logits.shape[1] else _fewer(logits)


def _fewer(logits: Tensor) -> int | None:
    """Return the number of positions for which the memory suffices; None for a small vocabulary."""
    most = max(MIN_POSITIONS, MAX_LOGITS // logits.shape[2])
    return most if logits.shape[2] > MAX_LOGITS // MANY_POSITIONS else None


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What tells classes from numbers."""

    outputs: Outputs
    """All outputs that count."""
    inputs: Any
    targets: Any
    pair: Any
    """The output for two samples."""

    def part(self, name: str, tensor: Tensor) -> Part:
        """Decide how one output is compared; `tensor` is that of two samples."""
        own, whole = targets_of(self.targets, name), self._whole(tensor)
        is_logits, tokens = self._is_logits(name), tokens_of(self.inputs)
        is_text = is_logits and are_words_last(whole, self.inputs)
        if not is_text and are_labels(whole, own) and self._belong(whole, own):
            check_labels(as_labels(whole, own), whole.shape[1])
            return Part(name=name, rule="divergence")
        is_series = tensor.dim() == 3 and tensor.shape[2] > 1
        if is_series and is_logits and (are_labels(whole.movedim(2, 1), own) or tokens is not None):
            return Part(name=name, rule="divergence", axis=2, positions=_positions(tensor, tokens))
        if tensor.dim() == 2 and tensor.shape[1] > 1 and own is None and is_logits:
            return Part(name=name, rule="divergence")
        return Part(name=name, rule="squared error")

    def _belong(self, whole: Tensor, own: Any) -> bool:
        """Return True if labels are an output's own, or if it has as many classes as the first output that they fit."""
        if own is not self.targets:
            return True
        every = (self._whole(tensor) for tensor in self.outputs.parts(self.pair, 2))
        return whole.shape[1] == next(tensor.shape[1] for tensor in every if are_labels(tensor, own))

    def _whole(self, tensor: Tensor) -> Tensor:
        return _for_all(tensor, leading_size(self.inputs))

    def _is_logits(self, name: str) -> bool:
        """Return True for the only output, and for one that is called logits."""
        return len(self.outputs.places) == 1 or name.rpartition(".")[2].endswith("logits")


@torch.no_grad()
def _measured(objective: DenseOutputs, model: nn.Module, batches: Rereadable) -> DenseOutputs:
    """Return the objective with the deviations of all outputs that are no classes."""
    sums = {part.name: torch.zeros(3, dtype=torch.float64, device="cpu") for part in objective.parts}
    device = device_of(model)
    with evaluation_mode(model):
        for number, (inputs, targets) in enumerate(track(batches, "deviations of the outputs")):
            if not is_own(number):
                continue
            samples = leading_size(inputs)
            output = forward(model, to_device(inputs, device))
            loss = objective.on(to_device(inputs, device), to_device(targets, device), samples)
            loss.see([(output, samples)], objective.read(output, samples, to_device(inputs, device)))
            tensors = objective.outputs.parts(output, samples)
            for part, tensor, mask in zip(objective.parts, tensors, loss.masks, strict=True):
                if part.rule == "squared error":
                    numbers = tensor.reshape(samples, -1)[mask.to(tensor.device)].double()
                    row = torch.stack([torch.ones_like(numbers).sum(), numbers.sum(), numbers.square().sum()])
                    sums[part.name] += row.cpu()
    every = {name: summed(row) for name, row in sums.items()}
    return replace(
        objective, parts=tuple(replace(part, deviation=_deviation(every[part.name])) for part in objective.parts)
    )


def _deviation(sums: Tensor) -> float:
    """Return the standard deviation; of outputs that never vary their size, or 1."""
    count, total, squares = sums.tolist()
    if not count:
        return 1.0
    mean, size = total / count, squares / count
    variance = size - mean**2
    return variance**0.5 if variance > 1e-12 * size else size**0.5 or 1.0
