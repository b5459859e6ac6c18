"""Prune a model in the middle of its training: a callback of the shape that Hugging Face's Trainer takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_range
from hessprune.foundation.formatting import shown
from hessprune.planning.plan import Plan
from hessprune.pruning.prune import PruneResult
from hessprune.surgery import checkpoint


class PruneCallback:
    """Prune the model of a Trainer after some steps, and let it train the smaller one.

    The model is changed in place, so that the Trainer goes on with it. Its optimizer receives the new parameters, with
    the state of those whose shape stayed. Beside each checkpoint that the Trainer saves later, the plan is written, so
    that `hp.load(checkpoint)` reads it.

    Args:
        prune: From a model to the result of `hp.prune` on it.
        at_step: Optimisation steps before the model is pruned; 0 prunes before the first.

    Raises:
        ArgumentError: `at_step` is out of range; while training: several processes share the training, or `prune`
            returns something else.

    Attributes:
        plan: The plan, once the model is pruned; `hp.save(trainer.model, callback.plan, folder)` takes it.

    Example:
        >>> import torch, hessprune as hp
        >>> x = torch.randn(16, 4)
        >>> callback = hp.PruneCallback(lambda m: hp.prune(m, x, [x], budget=hp.Budget(macs=0.5)), at_step=1)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> class State:
        ...     global_step = 1
        >>> callback.on_step_end(None, State(), None, model=net)  # as the Trainer does: Trainer(callbacks=[callback])
        >>> net[0].out_features
        4
    """

    def __init__(self, prune: Callable[[nn.Module], PruneResult], at_step: int = 0) -> None:
        check_range("at_step", at_step, low=0, integer=True)
        self.prune, self.at_step = prune, at_step
        self.plan: Plan | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Prune before the first step, if that is asked for."""
        self.on_step_end(args, state, control, **objects)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **objects: Any
    ) -> None:
        """Prune after the step that is asked for.

        Raises:
            ArgumentError: Several processes share the training, or `prune` returns something else.
        """
        del control, objects
        if self.plan is not None or state.global_step < self.at_step:
            return
        if getattr(args, "world_size", 1) > 1:
            raise ArgumentError(
                f"`PruneCallback` must run in one process, got {args.world_size}. Prune the model before the training."
            )
        result = self.prune(model)
        if not isinstance(result, PruneResult):
            raise ArgumentError(
                f"`prune` must return what hp.prune returns, got {shown(result)}. "
                "Write PruneCallback(lambda model: hp.prune(model, …))."
            )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        _become(model, result.model)
        if optimizer is not None:
            _hand_over(optimizer, names, dict(model.named_parameters()))
        self.plan = result.plan

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **objects: Any) -> None:
        """Write model and plan into the folder of a checkpoint."""
        del control, objects
        if self.plan is not None:
            checkpoint.save(model, self.plan, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def __getattr__(self, name: str) -> Any:
        """Answer all other events of a Trainer by doing nothing."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return _do_nothing


def _do_nothing(*args: Any, **objects: Any) -> None:
    """Take any event."""


def _become(model: nn.Module, other: nn.Module) -> None:
    """Give a model everything that another one of its class has, in the mode that it is in."""
    training = model.training
    vars(model).clear()
    vars(model).update(vars(other))
    model.train(training)


def _hand_over(optimizer: Any, names: dict[int, str], parameters: dict[str, nn.Parameter]) -> None:
    """Let an optimizer train the new parameters in the place of those of the same names."""
    for group in optimizer.param_groups:
        for place, old in enumerate(group["params"]):
            new = parameters.get(names.get(id(old), ""))
            if new is None:
                continue
            group["params"][place] = new
            state = optimizer.state.pop(old, None)
            if state and old.shape == new.shape:
                optimizer.state[new] = state
