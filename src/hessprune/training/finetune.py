"""Fine-tune a pruned model, or train a fresh one: the loop, from the first batch or from where a killed run stood."""

import copy
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprune.deploy.evaluation import PERPLEXITY, Evaluation, Metric, evaluate
from hessprune.errors import ArgumentError, NumericalError
from hessprune.foundation.arguments import required_inputs
from hessprune.foundation.arrival import arrived, received
from hessprune.foundation.bars import shown_progress
from hessprune.foundation.batches import read_pair
from hessprune.foundation.checks import check_batches, check_finite_parameters, refuse_ended
from hessprune.foundation.losses import LossFn
from hessprune.foundation.modules import device_of
from hessprune.foundation.named_losses import loss_of
from hessprune.foundation.options import check_type
from hessprune.foundation.progress import Bar, progress_bar
from hessprune.foundation.returned import check_average
from hessprune.foundation.state import seeded, set_training
from hessprune.foundation.trees import leading_size
from hessprune.foundation.words import next_word
from hessprune.training.batchnorm import FirstSamples, has_batchnorm, reestimate_batchnorm
from hessprune.training.config import EpochRecord, FinetuneConfig, FinetuneResult
from hessprune.training.course import Course
from hessprune.training.goal import Goal
from hessprune.training.learner import Learner, check_precision
from hessprune.training.replay import derived_seed, num_steps, replayed
from hessprune.training.resume import Progress, Vault, identity_of
from hessprune.training.team import is_shared, shared_data

__all__ = ["EpochRecord", "FinetuneConfig", "FinetuneResult", "finetune", "reestimate_batchnorm"]

BATCHNORM_SAMPLES = 8192
"""Training samples, about, whose BatchNorm statistics stand in for those of all."""


def finetune(
    model: nn.Module,
    train: Iterable[Any],
    validation: Iterable[Any],
    *,
    config: FinetuneConfig,
    loss_fn: LossFn | str | None = None,
    metric: Metric | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | str | None = None,
    progress: bool = False,
) -> FinetuneResult:
    """Train a copy of `model` and return its best epoch on `validation`.

    Minimises the mean over samples of `(1 − w)·loss(z, y) + w·T²·KL(teacher ‖ model)`, with the learning rate of
    `learning_rate` per step. Epoch 0, the model before training (with its BatchNorm re-estimated on `train`, if that
    validates better), competes with all others; of equal accuracies the lower loss wins. A fresh model is trained
    from scratch by the same call.

    Order of data, augmentation and dropout depend on (seed, epoch, step) only. So a run that was killed continues,
    when called again with the same arguments, from its last checkpoint and ends, on the same machine, with the same
    numbers bit for bit; a finished one returns at once. This covers data that draw from torch's generators.

    Args:
        model: Pruned, dense or fresh, on any device; stays untouched. In `DistributedDataParallel`, it is trained by
            all processes of the group: call this on every one with the same batches. Each runs its rows of every
            batch, so that any number of processes takes the same steps; BatchNorm normalises by these rows.
        train: Re-iterable of (inputs, targets); `set_epoch(epoch)` and `iterate(epoch, start_step)` are used if there.
        validation: Re-iterable of (inputs, targets), held out from both training and testing.
        config: Settings.
        loss_fn: `(output, targets) → mean loss of the batch`, for training and validation. If None, it is
            cross-entropy, or with the metric `"perplexity"` that of the next word, `"next_word"`, for which inputs
            alone suffice. Padding does not count in the latter, whatever its label.
        metric: `(output, targets) → mean of the batch`, the higher the better, or `"perplexity"`; it chooses the best
            epoch.
        teacher: The dense model, needed when `config.distill_weight` is above 0.
        checkpoint_dir: Folder to continue from and to keep the run in; None keeps nothing.
        progress: Draw a bar on standard error.

    Returns:
        The best model in evaluation mode, the history and the best epoch.

    Raises:
        ArgumentError: `config` is none, the device lacks the precision, the teacher is missing or answers in another
            shape, nothing can be trained, no loss or metric has the name, or it gives no number for a batch.
        CheckpointError: The folder holds another run, or a truncated file.
        DataError: The batches are empty or one-shot, do not fit the model, or hold labels out of range.
        NumericalError: Weights or loss are not finite, or the metric is NaN; the best model so far stays in the folder.
        OutputError: The folder cannot be written.

    Example:
        >>> import torch, hessprune as hp
        >>> batches, config = [(torch.eye(2), torch.tensor([0, 1]))], hp.FinetuneConfig(epochs=20, lr=1.0)
        >>> result = hp.finetune(torch.nn.Linear(2, 2), batches, batches, config=config)
        >>> result.history[result.best_epoch].validation_accuracy
        1.0
    """
    check_type("config", config, FinetuneConfig, "hp.FinetuneConfig(epochs=1)")
    if teacher is None and config.distill_weight > 0:
        raise ArgumentError(
            f"`teacher` must be a model when distill_weight is {config.distill_weight}, got None. Pass the dense "
            "model, or distill_weight=0."
        )
    loss = next_word if loss_fn is None and metric == PERPLEXITY else loss_of(loss_fn)
    check_average(loss)
    together = is_shared(model)
    with (
        shown_progress(progress),
        received(model) as plain,
        shared_data(together, train=train, validation=validation),
    ):
        taught = None if teacher is None else arrived(teacher)
        goal = Goal(loss_fn=loss, metric=metric, teacher=taught, together=together)
        return _finetuned(plain, train, validation, config, goal, checkpoint_dir)


def _finetuned(
    model: nn.Module,
    train: Iterable[Any],
    validation: Iterable[Any],
    config: FinetuneConfig,
    goal: Goal,
    checkpoint_dir: Path | str | None,
) -> FinetuneResult:
    """Train a copy of a plain model."""
    check_finite_parameters(model)
    check_precision(config.precision, device_of(model))
    with seeded(config.seed), _deterministic_kernels(device_of(model)):
        check_batches(train, "train")
        check_batches(validation, "validation")
        run = _prepare(model, train, validation, config, goal, checkpoint_dir)
        with progress_bar("training", config.epochs * run.steps_per_epoch) as bar:
            bar.advance((run.progress.epoch - 1) * run.steps_per_epoch + run.progress.step)
            for _ in range(run.progress.epoch, config.epochs + 1):
                _train_epoch(run, bar)
                started = time.perf_counter()
                _close_epoch(run, _validate(run, run.learner.model), started)
    return _result(run)


def _prepare(
    model: nn.Module,
    train: Iterable[Any],
    validation: Iterable[Any],
    config: FinetuneConfig,
    goal: Goal,
    checkpoint_dir: Path | str | None,
) -> Course:
    """Build a run that stands where the folder says, or at epoch 1 with epoch 0 measured."""
    vault = Vault(checkpoint_dir, lambda: identity_of(config, model, goal, train, validation))
    learner = Learner(copy.deepcopy(model), config, goal.teacher, goal.loss_fn, together=goal.together)
    vault.writes = learner.team.rank == 0
    saved = vault.load(learner)
    learner.team.wait()  # nobody writes before all have read
    run = Course(
        train=train,
        validation=validation,
        config=config,
        steps_per_epoch=num_steps(train),
        learner=learner,
        goal=goal,
        vault=vault,
        progress=saved or Progress(epoch=0),
    )
    if saved is None:
        _begin(run)
    return run


def _begin(run: Course) -> None:
    """Measure epoch 0: the model as it is or, where that validates better, with its BatchNorm re-estimated."""
    started, model = time.perf_counter(), run.learner.model
    validation = _validate(run, model)
    if run.config.reestimate_batchnorm and has_batchnorm(model):
        if hasattr(run.train, "set_epoch"):
            run.train.set_epoch(0)  # type: ignore[attr-defined]
        renewed = reestimate_batchnorm(model, FirstSamples(run.train, BATCHNORM_SAMPLES, model))
        other = _validate(run, renewed)
        if other.rank > validation.rank:
            model.load_state_dict(renewed.state_dict())  # in place: the optimizer knows these very parameters
            validation = other
    _close_epoch(run, validation, started)


def _train_epoch(run: Course, bar: Bar) -> None:
    """Take the epoch's remaining steps, with a checkpoint every so many."""
    progress, seed = run.progress, run.config.seed
    started = time.perf_counter()
    model, required = run.learner.model, required_inputs(run.learner.model)
    set_training(model, True)
    for batch in replayed(run.train, seed=seed, epoch=progress.epoch, start_step=progress.step):
        inputs, targets = read_pair(batch, model, required, "train")
        run.learner.freeze(run.taken(progress.step) / run.total_steps)
        with seeded(derived_seed(seed, "step", progress.epoch, progress.step, *run.learner.team.own)):
            loss = run.learner.step(inputs, targets, run.rate(progress.step))
        if not math.isfinite(loss):
            raise NumericalError(_diagnosis(run, f"loss must be finite, got {loss} at step {progress.step}"))
        now = time.perf_counter()
        progress.seconds, started = progress.seconds + now - started, now
        progress.step += 1
        progress.loss_sum += loss * leading_size(inputs)
        progress.num_samples += leading_size(inputs)
        if progress.step % run.config.checkpoint_every_steps == 0:
            run.vault.save(run.learner, progress)
        bar.advance(1, _note(run))
    if not progress.step:
        refuse_ended(run.train, "train")


def _validate(run: Course, model: nn.Module) -> Evaluation:
    try:
        return evaluate(model, run.validation, loss_fn=run.goal.loss_fn, metric=run.goal.metric)
    except NumericalError as error:
        if "`metric`" in str(error):  # no fault of the training
            raise
        raise NumericalError(_diagnosis(run, "validation loss must be finite, got NaN or infinity")) from error


def _close_epoch(run: Course, validation: Evaluation, started: float) -> None:
    """Remember the best epoch, and write it all down; `started` is when validation began."""
    progress = run.progress
    record = EpochRecord(
        epoch=progress.epoch,
        train_loss=progress.loss_sum / progress.num_samples if progress.num_samples else None,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        validation_metric=validation.metric,
        lower_is_better=validation.lower_is_better,
        lr=run.rate(progress.step - 1) if progress.step else 0.0,
        seconds=progress.seconds + time.perf_counter() - started,
    )
    progress.close_epoch(record, run.learner.model.state_dict())
    run.vault.save(run.learner, progress)


def _result(run: Course) -> FinetuneResult:
    model, progress = run.learner.model, run.progress
    model.load_state_dict(progress.best)
    model.zero_grad()
    set_training(model, False)
    return FinetuneResult(model=model, history=tuple(progress.history), best_epoch=progress.best_epoch)


def _note(run: Course) -> str:
    progress = run.progress
    loss, last = progress.loss_sum / progress.num_samples, progress.history[-1]
    accuracy = last.validation_accuracy
    validation = f"loss {last.validation_loss:.3g}" if accuracy is None else f"{accuracy:.1%}"
    return f"epoch {progress.epoch}/{run.config.epochs}, loss {loss:.3f}, validation {validation}"


def _diagnosis(run: Course, what: str) -> str:
    kept = run.vault.where(run.progress) if run.progress.history else ""
    return (
        f"{what} of epoch {run.progress.epoch}. Likely (a) too high a learning rate: lower `lr` ({run.config.lr:g}) or "
        "set `clip_norm`; (b) inputs that hold NaN or are not normalised; (c) overflow in fp16: use 'bf16' or 'fp32'; "
        f"(d) logits already extreme before training: look at epoch 0.{kept}"
    )


@contextmanager
def _deterministic_kernels(device: torch.device) -> Iterator[None]:
    """On CUDA, let cuDNN choose only among algorithms that return the same bits each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    if device.type == "cuda":
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        if device.type == "cuda":
            cudnn.deterministic, cudnn.benchmark = before
