"""Models whose parameters are spread over processes by FSDP2 (`torch.distributed.fsdp.fully_shard`).

At rest every process holds a part of each parameter. While a module runs, plain parameters stand in its place; they are
the same objects in every run, so that their identity tells which weight a call uses.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.processes import alone
from hessprune.foundation.state import evaluation_mode


def is_sharded(model: Any) -> bool:
    """Return whether some parameters of a model are spread over processes.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return isinstance(model, nn.Module) and any(
        type(parameter).__name__ == "DTensor" for parameter in model.parameters()
    )


def whole_tensor(values: Tensor) -> Tensor:
    """Return a tensor that is spread over processes as a whole, on each of them; any other as it is."""
    return values.full_tensor() if type(values).__name__ == "DTensor" else values  # type: ignore[attr-defined]


@contextmanager
def lent_as_sharded(model: nn.Module) -> Iterator[nn.Module]:
    """Lend a sharded model itself, for it cannot be copied; all processes do the same work in the block.

    Forward and backward passes gather one module after another, on all processes at once. Were the samples shared out,
    a process with fewer passes would leave the others waiting.
    """
    with torch.inference_mode(False), plain_forwards(), evaluation_mode(model), alone():
        yield model


_running: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()


def running_parameters(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the parameters that calls see while a model runs, by name; those of a sharded one are empty at rest."""
    if not is_sharded(model):
        return dict(model.named_parameters())
    if model not in _running:
        _running[model] = _gathered_in_turn(model)
    return _running[model]


def _gathered_in_turn(model: nn.Module) -> Mapping[str, Tensor]:
    found = dict(model.named_parameters())
    for name, module in model.named_modules():
        if hasattr(module, "unshard") and hasattr(module, "reshard"):
            module.unshard()  # type: ignore[operator]
            own = dict(module.named_parameters(prefix=name))
            found |= {key: value for key, value in own.items() if type(value) is nn.Parameter}
            module.reshard()  # type: ignore[operator]
    return found
