"""Modules that only run another one: `torch.compile`, data parallelism, averaged weights."""

import sys
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

_DATA_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def is_wrapper(module: nn.Module) -> bool:
    """Return whether a module only runs another one: `torch.compile`, data parallelism, averaged weights."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # slow to import, and imported where anything is compiled
    return isinstance(module, _DATA_PARALLEL) or (dynamo is not None and isinstance(module, dynamo.OptimizedModule))


def unwrapped(model: Any) -> Any:
    """Return the model inside all wrappers; the model itself if it has none."""
    while isinstance(model, nn.Module) and is_wrapper(model):
        model = next(model.children())
    return model
