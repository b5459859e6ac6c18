"""Weights that a module computes before each forward: masks, weight norm, spectral norm and other parametrisations.

Surgery needs plain parameters. All of these can be merged into the weights by one call of torch.
"""

import keyword
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hessprune.errors import UnsupportedModelError

MOST_SHOWN = 4
"""Calls that a message holds."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """A weight that is computed: the module, the kind, and the call that leaves a plain parameter."""

    module: str
    kind: str
    remedy: str


def check_plain_weights(model: nn.Module) -> None:
    """Raise if some weights are computed, with the calls that make them parameters.

    Args:
        model: As the user holds it, wrappers included: the calls name its modules.

    Raises:
        UnsupportedModelError: A weight is masked or parametrised.
    """
    found = [item for name, module in model.named_modules() for item in _computed(model, name, module)]
    if found:
        first, more = found[0], len(found) - MOST_SHOWN
        others = f", and {len(found) - 1} more" if len(found) > 1 else ""
        calls = "; ".join(item.remedy for item in found[:MOST_SHOWN])
        rest = f"; and so on for {more} more, {found[MOST_SHOWN].module!r} next" if more > 0 else ""
        raise UnsupportedModelError(
            f"`model` must hold its weights as plain parameters, got {first.kind} in module {first.module!r}{others}. "
            f"Call {calls}{rest}."
        )


def _computed(model: nn.Module, name: str, module: nn.Module) -> Iterator[_Computed]:
    """Yield the weights that one module computes."""
    code = as_code(model, name)
    if parametrize.is_parametrized(module):
        for tensor, steps in module.parametrizations.items():  # type: ignore[operator, union-attr]
            kinds = ", ".join(type(step).__name__.lstrip("_") for step in steps)
            call = f"torch.nn.utils.parametrize.remove_parametrizations({code}, {tensor!r})"
            yield _Computed(name, f"a parametrization of {tensor!r} ({kinds})", call)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            tensor = hook._tensor_name
            yield _Computed(name, f"a mask of {tensor!r}", f"torch.nn.utils.prune.remove({code}, {tensor!r})")
        elif isinstance(hook, WeightNorm | SpectralNorm):
            norm = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
            yield _Computed(name, f"{norm} of {hook.name!r}", f"torch.nn.utils.remove_{norm}({code}, {hook.name!r})")


def as_code(model: nn.Module, name: str) -> str:
    """Return the expression that reaches a module.

    Example:
        >>> as_code(nn.Sequential(nn.Sequential(nn.ReLU())), "0.0")
        'model[0][0]'
    """
    code, parent = "model", model
    for part in name.split(".") if name else ():
        if part.isidentifier() and not keyword.iskeyword(part):
            code += f".{part}"
        elif part.isdecimal() and isinstance(parent, nn.Sequential | nn.ModuleList):
            code += f"[{list(parent._modules).index(part)}]"
        else:
            return f"model.get_submodule({name!r})"
        parent = parent.get_submodule(part)
    return code
