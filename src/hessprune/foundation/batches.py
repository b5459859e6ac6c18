"""Calibration batches that are read several times: the same order each time, the caller's random state untouched."""

import collections
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hessprune.errors import DataError
from hessprune.foundation.arguments import required_inputs
from hessprune.foundation.checks import check_rereadable, refuse_ended
from hessprune.foundation.identity import content_sha256
from hessprune.foundation.processes import whole
from hessprune.foundation.state import seeded
from hessprune.foundation.texts import has_decoder, tokens_remedy
from hessprune.foundation.trees import describe, leading_size

IGNORED = -100
"""The label of words that do not count."""
LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions", "next_sentence_label")
"""Names of targets inside a mapping of inputs, as Hugging Face spells them."""
_END = object()
"""Stands behind the last batch; a loader whose collate function fails may yield None before."""


def as_pair(batch: Any, required: tuple[str, ...] = (), name: str = "batches") -> tuple[Any, Any]:
    """Return a batch as `(inputs, targets)`; the targets are None where there are none.

    Args:
        batch: A tensor or a dataclass of inputs; `(inputs,)`; `(inputs, targets)`; a mapping of inputs, with
            labels inside or not; or, for a model that requires several arguments, these and perhaps targets, one after
            another.
        required: From `required_inputs`.
        name: The argument that messages name.

    Raises:
        DataError: The batch is nothing of the kind, or holds no samples.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> [batch[1] is y for batch in map(as_pair, ({"x": x, "labels": y}, (x, y)))], as_pair(x)[1]
        ([True, True], None)
    """
    if isinstance(batch, Tensor):
        pair: tuple[Any, Any] = (batch, None)
    elif isinstance(batch, Mapping):
        pair = _without_labels(batch, required)
    elif is_dataclass(batch):
        pair = (batch, None)
    elif isinstance(batch, tuple | list) and batch:
        pair = _of_sequence(batch, len(required), name)
    else:
        remedy = _array_remedy(batch) or " Give tensors, or tuples and dicts of them; leave out what failed to load."
        raise DataError(f"`{name}` must yield inputs, or (inputs, targets) pairs, got {type(batch).__name__}.{remedy}")
    if leading_size(pair[0]) == 0:
        remedy = _array_remedy(pair[0]) or tokens_remedy(pair[0]) or " Leave empty ones out."
        raise DataError(f"`{name}` must hold non-empty batches of tensors, got inputs {describe(pair[0])}.{remedy}")
    return pair


def _array_remedy(value: Any) -> str:
    """Return the remedy for an array of numpy, or several; an empty string for anything else."""
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else (value,)
    is_array = any(hasattr(each, "__array__") and not isinstance(each, Tensor) for each in values)
    return " Make tensors of arrays: torch.from_numpy(array)." if is_array else ""


def _sequence_remedy(values: Any) -> str:
    """Return the remedy for a sequence that is no pair: samples side by side, numbers, or several inputs."""
    if all(isinstance(value, Tensor) and value.shape == values[0].shape for value in values):
        return "Stack samples: torch.stack(samples); give several inputs as ((a, b), targets)."
    if all(isinstance(value, Tensor) and value.dim() == 1 for value in values):
        return "Pad samples to one length and stack them; give several inputs as ((a, b), targets)."
    if isinstance(values[0], list | int | float):
        return "Make a tensor of numbers, padded to one length: torch.tensor(numbers)."
    return "Give several inputs as ((a, b), targets)."


def read_pair(batch: Any, model: nn.Module | None, required: tuple[str, ...], name: str = "batches") -> tuple[Any, Any]:
    """Return a batch as `(inputs, targets)`, as `as_pair` does, with all inputs that a model needs."""
    inputs, targets = as_pair(batch, required, name)
    return with_decoder_inputs(model, inputs, targets), targets


def _without_labels(batch: Mapping[str, Any], required: tuple[str, ...]) -> tuple[Any, Any]:
    labels = {key: batch[key] for key in LABELS if key in batch and key not in required}
    inputs = {key: value for key, value in batch.items() if key not in labels}
    return inputs, (next(iter(labels.values())) if len(labels) == 1 else labels or None)


def _of_sequence(batch: Any, arity: int, name: str) -> tuple[Any, Any]:
    if len(batch) == 1:
        return batch[0], None
    if arity > 1 and isinstance(batch[0], Tensor) and len(batch) in (arity, arity + 1):
        return tuple(batch[:arity]), (batch[arity] if len(batch) > arity else None)
    if len(batch) != 2:
        raise DataError(
            f"`{name}` must yield inputs, or (inputs, targets) pairs, got {type(batch).__name__} of length "
            f"{len(batch)}. {_sequence_remedy(batch)}"
        )
    return batch[0], batch[1]


def with_decoder_inputs(model: nn.Module | None, inputs: Any, targets: Any) -> Any:
    """Return inputs with those of the decoder, where an encoder–decoder pair makes them from the words to be said.

    Hugging Face's pairs do so inside their forward if it receives `labels`, which are taken out of a batch here.

    Raises:
        DataError: The model cannot make them.
    """
    config = getattr(model, "config", None)
    is_asked = (
        getattr(config, "is_encoder_decoder", False)
        and isinstance(inputs, Mapping)
        and not has_decoder(inputs)
        and isinstance(targets, Tensor)
        and targets.dim() == 2
        and not targets.is_floating_point()
        and callable(can_generate := getattr(model, "can_generate", None))
        and can_generate()
    )
    return {**inputs, "decoder_input_ids": _decoder_words(model, targets)} if is_asked else inputs


def _decoder_words(model: Any, words: Tensor) -> Tensor:
    """Return the words before each word, the first of which is the start of all texts.

    Raises:
        DataError: The model's configuration names no start, or no padding.
    """
    config = model.config
    start, padding = getattr(config, "decoder_start_token_id", None), getattr(config, "pad_token_id", None)
    if start is None or padding is None:
        raise DataError(
            "`batches` must hold `decoder_input_ids` beside the labels, or model.config decoder_start_token_id and "
            f"pad_token_id, got {start} and {padding}. Set both in model.config."
        )
    make: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if make is not None:
        return make(words)
    before = torch.cat([torch.full_like(words[:, :1], start), words[:, :-1]], 1)
    return before.masked_fill(before == IGNORED, padding)


class Pairs:
    """Batches as `(inputs, targets)` pairs, whatever form they have.

    Args:
        batches: Any iterable.
        model: The model that reads them; it tells inputs from targets where it requires several arguments.
        name: The argument that messages name.
    """

    def __init__(self, batches: Any, model: nn.Module | None = None, name: str = "batches") -> None:
        check_rereadable(batches, name)
        self.batches, self._model, self._name = batches, model, name

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        required = required_inputs(self._model)
        for batch in self.batches:
            yield read_pair(batch, self._model, required, self._name)

    def __getattr__(self, name: str) -> Any:
        """Answer as the batches do, `__len__` included."""
        if name in {"batches", "__setstate__"}:
            raise AttributeError(name)
        return getattr(self.batches, name)


def _pass_over(batches: Any) -> Iterator[Any]:
    """Return an iterator over batches; over a loader with workers of its own, which persistent ones are not.

    Workers that live on draw on from the numbers where the pass before has ended.
    """
    if isinstance(batches, DataLoader) and batches.persistent_workers:
        return batches._get_iterator()
    return iter(batches)


class Rereadable:
    """Batches that give the same samples in the same order on every pass.

    A loader that shuffles or augments draws from torch's global generators. Each batch is drawn under a seed of its
    own, and the generators are restored after each batch. The loader's own generator, if there is one, is restored
    after each pass. Samples are counted on the first whole pass.

    Args:
        batches: Any re-iterable of inputs or of `(inputs, targets)`; pairs come out.
        seed: For what the batches draw at random.
        model: The model that reads them; it tells inputs from targets where it requires several arguments.

    Raises:
        DataError: The batches can be read only once, or cannot be iterated.

    Example:
        >>> import torch
        >>> batches = Rereadable([(torch.zeros(3, 1), torch.zeros(3))])
        >>> batches.num_samples, len(list(batches)), batches.num_samples
        (0, 1, 3)
    """

    def __init__(self, batches: Any, seed: int = 0, model: nn.Module | None = None) -> None:
        check_rereadable(batches)
        self.batches, self.seed, self.num_samples, self.num_batches = batches, seed, 0, 0
        self.sha256, self._hashes = "", False
        self._model, self._required, self._last = model, required_inputs(model), None
        self._met = False  # any batch so far

    @classmethod
    def of(cls, batches: Any, model: nn.Module | None = None) -> "Rereadable":
        """Wrap batches, unless they are wrapped already."""
        return batches if isinstance(batches, cls) else cls(batches, model=model)

    def count(self) -> int:
        """Return the number of samples, whatever batches they come in; reads all of them once, unless it is known."""
        if not self.num_samples:
            collections.deque(self, maxlen=0)
        return self.num_samples

    def hashed(self) -> "Rereadable":
        """Let the next whole pass hash every batch, inputs and targets, into `sha256`; return the same batches."""
        self._hashes = not self.sha256
        return self

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        generator = getattr(self.batches, "generator", None)
        state = generator.get_state() if isinstance(generator, torch.Generator) else None
        try:
            with whole(self.batches):
                yield from self._seeded_pass()
        finally:
            if state is not None:
                self.batches.generator.set_state(state)

    def _seeded_pass(self) -> Iterator[tuple[Any, Any]]:
        with seeded(self.seed):
            iterator = _pass_over(self.batches)
        if iterator is self._last:
            refuse_ended(self.batches)
        self._last = iterator if not isinstance(self.batches, DataLoader) else None  # whose workers would live on
        count, number, hashes = 0, 0, [] if self._hashes else None
        while True:
            with seeded(self.seed + 1 + count):
                batch = next(iterator, _END)
            if batch is _END:
                break
            pair, self._met = read_pair(batch, self._model, self._required), True
            count, number = count + leading_size(pair[0]), number + 1
            if hashes is not None:
                hashes.append(content_sha256(pair))
            yield pair
        if self._met and not number:
            refuse_ended(self.batches)
        self.num_samples, self.num_batches = count, number
        if hashes is not None:
            self.sha256, self._hashes = content_sha256(hashes), False

    def __getattr__(self, name: str) -> Any:
        """Answer as the batches do, `__len__` included."""
        if name in {"batches", "__setstate__"}:
            raise AttributeError(name)
        return getattr(self.batches, name)
