"""Re-estimate BatchNorm: after pruning, the running statistics describe activations that no longer exist."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hessprune.foundation.arrival import arrived
from hessprune.foundation.batches import Pairs
from hessprune.foundation.checks import check_batches
from hessprune.foundation.modules import device_of, predict
from hessprune.foundation.progress import track
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import leading_size, to_device


@torch.inference_mode(False)
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Return a copy of `model` whose BatchNorm statistics are those of `batches`.

    Running mean and variance of each layer become the plain average over the B batches of the batch mean and the
    unbiased batch variance, `1/B Σ_b mean_b` and `1/B Σ_b var_b`, forgetting what they were; all other layers are in
    evaluation mode, so dropout stays off. One forward pass over the data; no parameter changes. A model without
    BatchNorm comes back as it is. A layer built with `track_running_stats=False` gets statistics.

    Args:
        model: Any model; stays untouched, random state included.
        batches: Re-iterable of (inputs, targets); the targets are not read.

    Returns:
        A new model, each module in the mode it had.

    Raises:
        DataError: The batches are empty or one-shot, or do not fit the model (a batch of one value per channel has
            no variance).

    References:
        Ioffe and Szegedy (2015), Batch Normalization, arXiv:1502.03167, Algorithm 2, lines 8–12.

    Example:
        >>> import torch, hessprune as hp
        >>> layer = torch.nn.BatchNorm1d(1)
        >>> batches = [(torch.tensor([[0.0], [2.0]]), None), (torch.tensor([[4.0], [8.0]]), None)]
        >>> hp.reestimate_batchnorm(layer, batches).running_mean
        tensor([3.5000])
    """
    model = copy.deepcopy(arrived(model))
    _give_statistics(model)
    norms = _norms(model)
    if not norms:
        return model
    device = device_of(model)
    with seeded(0), evaluation_mode(model), _accumulating(norms), torch.no_grad():
        check_batches(batches)
        for inputs, _ in track(Pairs(batches, model), "re-estimating BatchNorm"):
            predict(model, to_device(inputs, device))
    return model


class FirstSamples:
    """The first batches for a model, as pairs of inputs and targets, until they hold `count` samples."""

    def __init__(self, batches: Iterable[Any], count: int, model: nn.Module | None = None) -> None:
        self._batches, self._count = Pairs(batches, model), count

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        seen = 0
        for inputs, targets in self._batches:
            yield inputs, targets
            seen += leading_size(inputs)
            if seen >= self._count:
                return


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether there are statistics to re-estimate."""
    return bool(_norms(model))


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _give_statistics(model: nn.Module) -> None:
    """Let every BatchNorm keep running statistics."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            like = module.weight if module.affine else torch.empty(0, device=device_of(model))
            module.track_running_stats = True
            module.running_mean = like.new_zeros(module.num_features).detach()
            module.running_var = like.new_ones(module.num_features).detach()
            module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=like.device)


@contextmanager
def _accumulating(norms: list[_BatchNorm]) -> Iterator[None]:
    """Start the statistics anew and average them over the block; `momentum=None` is torch's plain average."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # type: ignore[assignment]  # torch documents None, its stubs say float
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
