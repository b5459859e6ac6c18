"""Weights that a module computes before each forward: masks, weight norm, spectral norm and other parametrisations.

Surgery cuts plain parameters. All of these can be merged into the weights by one call of torch. Parametrisations are
part of the graph, so other layers can be pruned around them; masks and older norms change weights behind its back.
"""

import keyword
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hessprune.errors import ArgumentError, UnsupportedModelError

MOST_SHOWN = 4
"""Calls that a message holds."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """A weight that is computed: the module, the kind, and the call that leaves a plain parameter."""

    module: str
    kind: str
    remedy: str
    is_hook: bool


def check_no_masks(model: nn.Module) -> None:
    """Raise if hooks compute some weights: masks, or the older forms of weight norm and spectral norm.

    Raises:
        UnsupportedModelError: There are such weights; the message holds the calls that make them parameters.
    """
    _refuse([item for item in _all_computed(model) if item.is_hook], model)


def check_plain_weights(model: nn.Module) -> None:
    """Raise if any weights are computed.

    Args:
        model: As the user holds it, wrappers included: the calls name its modules.

    Raises:
        UnsupportedModelError: There are such weights; the message holds the calls that make them parameters.
    """
    _refuse(_all_computed(model), model)


@contextmanager
def naming_computed_weights(model: nn.Module) -> Iterator[None]:
    """Add the calls that merge computed weights to errors of a block: weights that stay whole are a likely cause."""
    try:
        yield
    except (ArgumentError, UnsupportedModelError) as error:
        calls = merging_calls(model)
        if not calls or calls in str(error):
            raise
        raise type(error)(f"{error} Or merge the computed weights, which stay whole: {calls}.") from error


def merging_calls(model: nn.Module) -> str:
    """Return the calls that make computed weights plain parameters; an empty string if there are none."""
    found = _all_computed(model)
    more = len(found) - MOST_SHOWN
    rest = f"; and so on for {more} more, {found[MOST_SHOWN].module!r} next" if more > 0 else ""
    return "; ".join(item.remedy for item in found[:MOST_SHOWN]) + rest


def _all_computed(model: nn.Module) -> list[_Computed]:
    if not isinstance(model, nn.Module):  # to be refused by others
        return []
    return [item for name, module in model.named_modules() for item in _computed(model, name, module)]


def _refuse(found: list[_Computed], model: nn.Module) -> None:
    if found:
        others = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise UnsupportedModelError(
            f"`model` must hold its weights as plain parameters, got {found[0].kind} in module {found[0].module!r}"
            f"{others}. Call {merging_calls(model)}."
        )


def _computed(model: nn.Module, name: str, module: nn.Module) -> Iterator[_Computed]:
    """Yield the weights that one module computes."""
    if not parametrize.is_parametrized(module) and not module._forward_pre_hooks:
        return
    code = as_code(model, name)
    if parametrize.is_parametrized(module):
        for tensor, steps in module.parametrizations.items():  # type: ignore[operator, union-attr]
            kinds = ", ".join(type(step).__name__.lstrip("_") for step in steps)
            call = f"torch.nn.utils.parametrize.remove_parametrizations({code}, {tensor!r})"
            yield _Computed(name, f"a parametrization of {tensor!r} ({kinds})", call, is_hook=False)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            tensor = hook._tensor_name
            call = f"torch.nn.utils.prune.remove({code}, {tensor!r})"
            yield _Computed(name, f"a mask of {tensor!r}", call, is_hook=True)
        elif isinstance(hook, WeightNorm | SpectralNorm):
            norm = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
            call = f"torch.nn.utils.remove_{norm}({code}, {hook.name!r})"
            yield _Computed(name, f"{norm} of {hook.name!r}", call, is_hook=True)


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
