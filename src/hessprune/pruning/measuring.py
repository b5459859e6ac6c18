"""`hp.measure`: all that budgets have in common, in one pass over the data or two."""

import collections
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hessprune.costs.budget import Budget
from hessprune.curvature.reading_layers import input_moments
from hessprune.errors import ArgumentError
from hessprune.foundation.answers import SAMPLES, answers, tolerance_of
from hessprune.foundation.arrival import watched
from hessprune.foundation.bars import shown_progress
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.hashing import weights_sha256
from hessprune.foundation.identity import architecture_sha256, loss_identity
from hessprune.foundation.options import check_flag
from hessprune.foundation.parametrised import naming_computed_weights
from hessprune.foundation.trees import leading_size
from hessprune.layers.input_moments import InputMoments
from hessprune.methods.gates import role_slices
from hessprune.methods.method import Method
from hessprune.methods.reach import sampled_groups
from hessprune.methods.scoring import scored
from hessprune.methods.text import as_method
from hessprune.methods.values import Saliency
from hessprune.objectives.choice import Chosen, choose_objective
from hessprune.objectives.judging import mean_loss
from hessprune.planning.packing import digest
from hessprune.planning.ranking import Ranking
from hessprune.pruning.memory import NoMemory, Settings
from hessprune.pruning.statistics import Origin, Statistics
from hessprune.pruning.task import Task
from hessprune.surgery.calibration import Samples


def measure(
    model: nn.Module,
    example_inputs: Any,
    batches: Any,
    *,
    method: str | Method | Sequence[str | Method] = "joint",
    loss_fn: Any = None,
    outputs: Chosen = None,
    compensate: bool = True,
    ranking: Ranking | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Statistics:
    """Measure once what `hp.prune(…, stats=stats)` needs for any budget.

    Saliencies, and the mean and covariance of what each layer that loses units reads. With these, a further budget
    costs no run over the data: `hp.prune` reads it once to see that it is the same, plans, cuts, and refits each layer
    by the moments of the dense model's inputs. That is quick and does not correct the errors of earlier layers;
    `hp.compensate` does, with passes. Steps (`hp.Ranking(step=…)`) and implants still take passes.

    Cost: that of `hp.saliency`, and a forward for the moments where the method has none. A budget from the statistics
    took 3 to 5 % of that on ResNet-50 and ViT-B/16.

    Args:
        model: The trained model; left untouched.
        example_inputs: One batch as the model takes it.
        batches: Calibration data, as for `hp.prune`.
        method: One method, or several that budgets may choose among. Methods that need no data (`magnitude`, `random`,
            `bn_scale`) are always there.
        loss_fn: As for `hp.prune`.
        outputs: As for `hp.prune`.
        compensate: Whether to keep moments: `4 K²` bytes for a layer of `K` inputs.
        ranking: Its `ignore`, `units` and `gqa` decide which units there are.
        seed: For whatever the methods draw at random.
        progress: Draw bars on standard error.

    Returns:
        The statistics: print them, `.save(path)` them, read them by `hp.Statistics.load(path)`.

    Raises:
        ArgumentError: `method` names none.
        HessPruneError: As `hp.prune` raises.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batches = [torch.randn(16, 4, generator=torch.Generator().manual_seed(0))]
        >>> stats = hp.measure(net, torch.zeros(1, 4), batches)
        >>> for share in (0.75, 0.5):
        ...     hp.prune(net, torch.zeros(1, 4), batches, budget=hp.Budget(macs=share), stats=stats).plan.num_removed
        2
        4
    """
    started = time.perf_counter()
    check_flag("compensate", compensate)
    asked = [method] if isinstance(method, str | Method) or not isinstance(method, Iterable) else [*method]
    methods = [as_method(each).with_refit(compensate) for each in asked]
    if not methods:
        raise ArgumentError('`method` must name a method at least, got none. Write method="joint".')
    task = Task(
        model=model,
        example_inputs=example_inputs,
        batches=Rereadable.of(batches, model).hashed(),
        budget=Budget(macs=1.0),
        method=methods[0],
        loss_fn=loss_fn,
        outputs=outputs,
        compensate=compensate,
        ranking=Ranking() if ranking is None else ranking,
        seed=seed,
    )
    with shown_progress(progress), torch.inference_mode(False), plain_forwards(), naming_computed_weights(model):
        task = task.ready()
        moments: dict[str, InputMoments] = {}
        saliencies = {each.scored_as: scored_with_moments(replace(task, method=each), moments) for each in methods}
        if compensate and not moments:
            moments |= layer_moments(task)
    return Statistics(
        saliencies=saliencies,
        moments=moments if compensate else None,
        origin=origin_of(task),
        num_samples=task.batches.num_samples,
        seconds=time.perf_counter() - started,
    )


def scored_with_moments(task: Task, moments: dict[str, InputMoments]) -> Saliency:
    """Score the units of a task; `moments` receives those of layer inputs that the method measures anyway."""
    with watched(task.model) as plain:
        return scored(
            plain,
            task.groups,
            task.batches,
            task.method,
            loss_fn=task.loss_fn,
            outputs=task.outputs,
            seed=task.seed,
            moments=moments if task.compensate else None,
        )


def layer_moments(task: Task) -> dict[str, InputMoments]:
    """Measure the moments of all layers that read units, in one forward pass over the data."""
    with watched(task.model) as plain:
        slices = role_slices(sampled_groups(plain, task.groups, task.batches), "consumer")
        if not slices:
            return {}
        objective = choose_objective(plain, task.batches, task.loss_fn, outputs=task.outputs)
        return input_moments(plain, slices, task.batches, loss_fn=objective, seed=task.seed)


def origin_of(task: Task) -> Origin:
    """Return what the statistics of a task depend on, besides the method.

    Reads all batches once, unless a pass has hashed them before, and runs the model on four samples.
    """
    if not task.batches.sha256:
        collections.deque(task.batches.hashed(), maxlen=0)
    batch = next(iter(task.batches))
    return Origin(
        model=weights_sha256(task.model),
        architecture=architecture_sha256(task.model),
        groups=digest(task.groups),
        data=task.batches.sha256,
        loss="dense outputs" if task.loss_fn is None else loss_identity(task.loss_fn),
        outputs=task.scoring_settings().get("outputs"),
        seed=task.seed,
        answers=answers(task.model, batch[0]),
        value=() if task.loss_fn is None else (_value(task, *batch),),
        tolerance=tolerance_of(task.model),
    )


def _value(task: Task, inputs: Any, targets: Any) -> float:
    """Return the loss on the first samples, or on the whole batch whose targets belong to it as a whole."""
    samples = Samples(inputs=inputs, targets=targets, places=torch.arange(leading_size(inputs), device="cpu"))
    few = samples.rows(samples.places[:SAMPLES]) if samples.can_be_split else samples
    objective = choose_objective(task.model, task.batches, task.loss_fn, outputs=task.outputs)
    return mean_loss(objective, task.model, task.model, [(few.inputs, few.targets)])


class Measured(NoMemory):
    """Returns the saliencies of statistics; makes everything else now."""

    def __init__(self, stats: Statistics, method: Method) -> None:
        self._stats, self._method = stats, method

    def saliency(self, settings: Settings, make: Any) -> Saliency:
        """Return the saliencies that were measured; those of a method without data are made.

        Raises:
            ArgumentError: The statistics hold none of this method.
        """
        values = self._stats.saliencies.get(settings["method"])
        if values is None and self._method.needs is not None:
            raise ArgumentError(
                f"`stats` must hold saliencies of the method, got those of {', '.join(self._stats.saliencies)} for "
                f"{settings['method']}. Call hp.measure(model, example_inputs, batches, method={settings['method']!r})."
            )
        return make() if values is None else values


def with_statistics(task: Task, stats: Statistics) -> Task:
    """Return a task that takes saliencies and moments from statistics.

    Raises:
        ArgumentError: They are no statistics, or were measured for other arguments.
    """
    if not isinstance(stats, Statistics):
        raise ArgumentError(
            f"`stats` must be Statistics, got {type(stats).__name__}. Pass hp.measure(model, example_inputs, batches)."
        )
    stats.check(origin_of(task))
    if task.compensate and stats.moments is None:
        raise ArgumentError(
            "`stats` must hold input moments to compensate by, got none. Call hp.measure with compensate=True, or "
            "hp.prune with compensate=False."
        )
    return replace(task, memory=Measured(stats, task.method), moments=stats.moments)
