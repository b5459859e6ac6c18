"""`hp.saliency`: every method behind one signature."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.arrival import watched
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches, check_finite_parameters, check_range
from hessprune.methods.method import Method, Scoring
from hessprune.methods.text import as_method
from hessprune.methods.values import Saliency
from hessprune.structure.groups import Group

HIGHEST_SEED = 2**63 - 1


def saliency(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    method: str | Method = "hap",
    *,
    loss_fn: Any = None,
    seed: int = 0,
) -> Saliency:
    """Estimate the increase of the loss when each unit is removed.

    Args:
        model: Left untouched, as are torch's random generators.
        groups: From `find_groups`.
        batches: Calibration data, a re-iterable of `(inputs, targets)`; a few hundred samples are enough.
        method: A method by value, such as `hp.HAP(estimator="rademacher")`, or as text, such as `"hap"`.
        loss_fn: A loss of `(logits, targets)` that averages over samples; cross-entropy if None.
        seed: For methods that draw at random and have no seed of their own.

    Returns:
        `{group name: (U,)}` in float64, with its provenance and, for stochastic estimators, standard errors.

    Raises:
        ArgumentError: The method is unknown, a seed is out of range, or the method's own seed differs from `seed`.
        DataError: `batches` is a one-shot generator or empty.
        NumericalError: Weights are not finite.

    Example:
        >>> import torch, hessprune as hp
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 2)
        >>> batches = [(x, torch.arange(8) % 2)]
        >>> hp.saliency(net, hp.find_groups(net, x), batches, hp.HAP(precision="fp64"))["0"].shape
        torch.Size([4])
    """
    method = as_method(method)
    check_seed(seed, method)
    with watched(model) as plain:
        return _scored(plain, groups, Rereadable.of(batches), method, loss_fn=loss_fn, seed=seed)


def _scored(
    model: nn.Module, groups: Sequence[Group], batches: Rereadable, method: Method, *, loss_fn: Any, seed: int
) -> Saliency:
    """Score the units of a plain model.

    Raises:
        DataError: `batches` is a one-shot generator or empty.
        NumericalError: Weights are not finite.
    """
    check_batches(batches)
    check_finite_parameters(model)
    scores = method.score(Scoring(model=model, groups=groups, batches=batches, loss_fn=loss_fn, seed=seed))
    facts = {"method": method.name, "options": str(method), "seed": seed, "num_samples": batches.num_samples}
    return Saliency(
        scores.values,
        provenance={**facts, "loss": loss_name(loss_fn), **scores.facts},
        per_cost=method.per_cost,
        standard_error=scores.standard_error,
        interactions=scores.interactions,
    )


def check_seed(seed: int, method: Method) -> None:
    """Raise unless a seed is in range and does not contradict the method's own.

    Raises:
        ArgumentError: The seed is out of range, or the method has another one.
    """
    check_range("seed", seed, low=0, high=HIGHEST_SEED, integer=True)
    own = getattr(method, "seed", None)
    if own is not None and seed not in (0, own):
        raise ArgumentError(f"`seed` must be that of `method`, got {seed} beside {method}. Give one of them.")


def loss_name(loss_fn: Any) -> str:
    """Return a name for the provenance: the class or function that computes the loss."""
    return "cross_entropy" if loss_fn is None else getattr(loss_fn, "__name__", type(loss_fn).__name__)
