"""The layers that can carry stand-ins for the units of a group, and the centre of a kernel, where 1×1 filters read."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hessprune.foundation.modules import call_model, dry_run, split_name
from hessprune.layers.calls import CallMode, slow_attention, weight_names
from hessprune.operators.maps import Arguments, LinearMap
from hessprune.structure.groups import Group, producers

CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""Layers that can have a stand-in, and the number of axes of their kernel; with a `rank`, linear layers can too."""


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
    carriers = {}
    for group in groups:
        pieces = [piece for piece in producers(group) if piece.dim == 0 and piece.param in plain]
        layers = dict.fromkeys(split_name(piece.param)[0] for piece in pieces)
        carriers[group.name] = tuple(name for name in layers if not obstacle(model.get_submodule(name), rank))
    return {name: layers for name, layers in carriers.items() if layers}


def obstacle(layer: Any, rank: int | None) -> str:
    """Return the reason why filters of a layer cannot be replaced; empty where they can."""
    kind = type(layer)
    if kind not in {*CONVOLUTIONS, nn.Linear}:
        return f"it is a {kind.__name__}"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks"
    if rank is None and (kind is nn.Linear or layer.weight[0, 0].numel() == 1):
        return "it has no kernel to shrink: set `rank`"
    if kind is not nn.Linear and layer.groups > 1:
        return "it is a grouped convolution"
    if rank is None and layer.padding_mode != "zeros" and max(sum(centre_padding(layer), ())) > 0:
        return f"its 1×1 filters would read {layer.padding_mode} padding"
    return ""


def centre(layer: Any) -> tuple[int, ...]:
    """Return the position in the kernel that a 1×1 filter takes over: the middle, the left one of two."""
    return tuple((size - 1) // 2 for size in layer.kernel_size)


def centre_padding(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding, before and after, with which a 1×1 filter reads the centre of the kernel (negative: cut).

    Example:
        >>> from torch import nn
        >>> from hessprune.structure.carriers import centre_padding
        >>> centre_padding(nn.Conv2d(1, 1, 3, padding=1)), centre_padding(nn.Conv1d(1, 1, 3))
        (((0, 0), (0, 0)), ((-1,), (-1,)))
    """
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        padding = [(total // 2, total - total // 2) if layer.padding == "same" else (0, 0) for total in reach]
    else:
        padding = [(amount, amount) for amount in layer.padding]
    offsets = [d * at for d, at in zip(layer.dilation, centre(layer), strict=True)]
    return (
        tuple(before - offset for (before, _), offset in zip(padding, offsets, strict=True)),
        tuple(after - (total - offset) for (_, after), total, offset in zip(padding, reach, offsets, strict=True)),
    )


def _called_as_modules(model: nn.Module, inputs: Any) -> set[str]:
    """Return the weights of modules that are used by calling their module, and in no other way."""
    return dry_run(model, inputs, _observe)


def _observe(model: nn.Module, inputs: Any) -> set[str]:
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
    """Counts the products in which each weight is used."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.uses: Counter[str] = Counter()

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        self.uses[name] += 1
        return super().on_call(name, call, arguments)
