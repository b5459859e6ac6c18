"""One optimisation step, and the state that it changes."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from hessprune.errors import ArgumentError
from hessprune.foundation.arguments import argument_names
from hessprune.foundation.losses import LossFn, as_cross_entropy, check_class_axis, labels_for
from hessprune.foundation.modules import device_of, forward, logits_of, predict
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.texts import by_name, position_mask
from hessprune.foundation.trees import describe, leading_size, to_device
from hessprune.foundation.words import check_words, next_word, predicted_words, shifts_words, word_entropy
from hessprune.training.config import FinetuneConfig
from hessprune.training.objective import divisor, objective, words_kept
from hessprune.training.team import Share, Team

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """A model in training: its parameters and buffers, the optimizer's state and the loss scale of fp16.

    Args:
        model: Trained in place; only parameters that require a gradient change.
        config: Optimizer, objective and precision.
        teacher: Read in evaluation mode when `config.distill_weight` is above 0; on any device.
        loss_fn: `(output, targets) → mean loss of the batch`; cross-entropy if None.
        together: Whether all processes of the group train this model, each on its rows of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        config: FinetuneConfig,
        teacher: nn.Module | None,
        loss_fn: LossFn | None = None,
        *,
        together: bool = False,
    ) -> None:
        self.model = model
        self.team = Team(model, together)
        self.loss_fn = loss_fn
        self.kind = word_entropy if loss_fn is next_word else loss_fn
        self.config = config
        self.teacher = teacher if config.distill_weight > 0 else None
        self.device = device_of(model)
        self.optimizer = make_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def step(self, inputs: Any, targets: Any, lr: float) -> float:
        """Take one step and return the loss before it; a loss that is not finite is returned and changes no weight.

        A batch without a single label has no loss: it counts as 0 and changes nothing either, unless a teacher
        provides all of the objective.
        """
        inputs, targets = to_device((inputs, targets), self.device)
        targets = self._as_words(inputs, targets)
        if self._is_unlabelled(targets):
            return 0.0
        loss = self._loss(self.team.share(inputs, targets), inputs, targets)
        value = self.team.total(float(loss.detach()), (inputs, targets))
        if math.isfinite(value):
            self._update(loss, lr)
            self.team.meet()
        return value

    def freeze(self, share: float) -> None:
        """Stop what is to be stopped when this share of all steps has been taken; called before every step."""
        if share >= self.config.freeze_batchnorm_at:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if share >= self.config.freeze_ranges_at:
            for module in self.model.modules():
                if hasattr(module, "disable_observer"):  # a fake quantiser, which keeps this in its state
                    module.disable_observer()  # type: ignore[operator]

    def state(self) -> dict[str, Tensor]:
        """Return every tensor a resumed run needs, by name: `model.<name>` and `optimizer.<entry>.<parameter>`."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for entry, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{entry}.{name}"] = value
        return tensors

    def load(self, tensors: Mapping[str, Tensor], scaler: Mapping[str, float]) -> None:
        """Take over what `state` and `scaler.state_dict` returned."""
        self.model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        parameters = dict(self.model.named_parameters())
        for full_name, value in tensors.items():
            kind, _, rest = full_name.partition(".")
            if kind == "optimizer":
                entry, _, name = rest.partition(".")
                # AdamW counts its steps on the CPU; everything else lives with the parameter.
                moved = value if entry == "step" else value.to(parameters[name].device)
                self.optimizer.state[parameters[name]][entry] = moved
        self.scaler.load_state_dict(dict(scaler))

    def _as_words(self, inputs: Any, targets: Any) -> Any:
        """Return the words of texts in the places of their predictions; targets of other losses as they are."""
        if self.kind is not word_entropy or self.config.distill_weight == 1:
            return targets
        named = by_name(argument_names(self.model), inputs)
        return predicted_words(None, named, targets, shift=shifts_words(self.model), asker="next_word")

    def _loss(self, share: Share, inputs: Any, targets: Any) -> Tensor:
        """Return the objective of a share of a batch; its mean over processes is that of the batch."""
        entropy, own = as_cross_entropy(self.loss_fn), share.targets
        with self._autocast():
            output = forward(self.team.module, share.inputs, "train")
            taught = self._teach(share.inputs, logits_of(output))
        logits, named = logits_of(output), by_name(argument_names(self.model), share.inputs)
        if self.config.distill_weight < 1 and self.kind is word_entropy:
            check_words(logits, own, asker="next_word")
        elif self.config.distill_weight < 1 and entropy is not None:
            check_class_axis(logits, own, named)
            own = labels_for(logits, own, "train", ignore_index=entropy.ignore_index)
        if self.team.size == 1:
            return objective(output, own, taught, self.config, self.kind, inputs=named)
        count, whole = (divisor(labels, self.kind) for labels in (own, targets))
        labels = share.rows if count is None or whole is None else self.team.size * count / whole
        if share.rows == 0:  # a row that stands in for none
            labels = 0.0
        rows = self._weight(share, inputs, logits)
        return objective(output, own, taught, self.config, self.kind, inputs=named, of_labels=labels, of_rows=rows)

    def _weight(self, share: Share, inputs: Any, logits: Tensor) -> float:
        """Return the factor of a mean over the positions of a share, of texts without their padding."""
        names = argument_names(self.model)
        own = words_kept(logits, by_name(names, share.inputs), self.kind)
        whole = position_mask(by_name(names, inputs), (leading_size(inputs), *logits.shape[1:2]))
        if own is None or whole is None or share.rows == 0:
            return share.rows
        return self.team.size * float(own.sum()) / max(float(whole.sum()), 1.0)

    def _teach(self, inputs: Any, logits: Tensor) -> Tensor | None:
        """Return the teacher's logits, on the student's device."""
        if self.teacher is None:
            return None
        with evaluation_mode(self.teacher), torch.no_grad():
            taught = predict(self.teacher, to_device(inputs, device_of(self.teacher)), "train").to(self.device)
        if taught.shape != logits.shape:
            raise ArgumentError(
                f"`teacher` must answer like the model, {describe(logits)}, got {describe(taught)}. "
                "Pass the dense model that was pruned, or distill_weight=0."
            )
        return taught

    def _is_unlabelled(self, targets: Any) -> bool:
        """Return whether no label counts, and no teacher provides all of the objective."""
        return self.config.distill_weight < 1 and divisor(targets, self.kind) == 0

    def _update(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.config.precision])


def make_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """Return the optimizer, with weight decay on weights only: biases and normalisation parameters keep their size.

    Raises:
        ArgumentError: No parameter requires a gradient.
    """
    kept = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained and config.epochs:
        raise ArgumentError(
            "`model` must have a parameter with requires_grad=True, got none. Call model.requires_grad_(True)."
        )
    groups = [
        {"params": [p for p in trained if p.dim() > 1 and id(p) not in kept], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1 or id(p) in kept], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise unless the device can train in this precision.

    Raises:
        ArgumentError: fp16 on a CPU, or bf16 on a device that lacks it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ArgumentError("`precision` must be 'fp32' or 'bf16' on a CPU, got 'fp16'. Use precision='bf16'.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ArgumentError("`precision` must be 'fp32' or 'fp16' on this device, got 'bf16'. Use precision='fp16'.")
