"""Which layers can carry stand-ins for the units of which group."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hessprune.foundation.modules import call_model, dry_run, split_name
from hessprune.layers.recording import CallMode, slow_attention, weight_names
from hessprune.operators.maps import Arguments, LinearMap
from hessprune.structure.groups import Group, producers
from hessprune.surgery.implants.stand_ins import obstacle


def stand_in_layers(
    model: nn.Module, groups: Sequence[Group], inputs: Any, *, rank: int | None = None
) -> dict[str, tuple[str, ...]]:
    """Return for each group the layers in which its units can have a stand-in; groups without any are left out.

    These are plain convolutions with a kernel larger than 1, and with a `rank` 1×1 convolutions and linear layers too,
    that the model uses by calling the module. Grouped, depthwise and transposed convolutions, shared or computed
    weights stay as they are.

    Args:
        model: Left untouched.
        groups: From `find_groups`.
        inputs: Example inputs; one forward without arithmetic shows which modules are called.
        rank: Of the stand-ins; None for 1×1 filters in the place of larger ones.

    Returns:
        `{group name: (module name, …)}`, modules in the model's order.
    """
    plain = _called_as_modules(model, inputs)
    found = {}
    for group in groups:
        pieces = [piece for piece in producers(group) if piece.dim == 0 and piece.param in plain]
        layers = dict.fromkeys(split_name(piece.param)[0] for piece in pieces)
        found[group.name] = tuple(name for name in layers if not obstacle(model.get_submodule(name), rank))
    return {name: layers for name, layers in found.items() if layers}


def _called_as_modules(model: nn.Module, inputs: Any) -> set[str]:
    """Return the weights of modules that are used by calling their module, and in no other way."""
    return dry_run(model, inputs, _watch)


def _watch(model: nn.Module, inputs: Any) -> set[str]:
    calls: Counter[str] = Counter()
    owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))

    def count(name: str) -> Any:
        return lambda *_: calls.update([name])

    for name, module in model.named_modules():
        module.register_forward_hook(count(f"{name}.weight"))
    mode = _Uses(weight_names(model), 1)
    with slow_attention(), mode:
        call_model(model, inputs)
    weights = {name: id(weight) for name, weight in model.named_parameters()}
    return {name for name, uses in mode.uses.items() if calls[name] == uses and owners[weights[name]] == 1}


class _Uses(CallMode):
    """Counts how often each weight multiplies something."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.uses: Counter[str] = Counter()

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        self.uses[name] += 1
        return super().on_call(name, call, arguments)
