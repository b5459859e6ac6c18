"""Borrow a model and give it back as it was: mode, `requires_grad`, `.grad` and random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode; restore each module's own flag on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def drop_caches(model: nn.Module) -> None:
    """Enter training mode and leave it again: layers that keep tensors between evaluations (LeViT) let go of them."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, training in modes:
        module.training = training


@contextmanager
def borrowed(model: nn.Module, *, requires_grad: bool | None = None) -> Iterator[None]:
    """Evaluation mode with `.grad` set aside, and `requires_grad` overridden where given; all restored on exit."""
    saved = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with evaluation_mode(model):
        try:
            for parameter, _, _ in saved:
                parameter.grad = None
                if requires_grad is not None:
                    parameter.requires_grad_(requires_grad)
            yield
        finally:
            for parameter, flag, grad in saved:
                parameter.requires_grad_(flag)
                parameter.grad = grad


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set torch's CPU threads for a block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators for a block; the caller's random state is restored on exit."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        # `torch.manual_seed` formats a stack trace per absent kind of device: 0.2 ms, twice in every training step.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)
        yield
