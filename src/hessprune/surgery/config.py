"""The configuration of a changed model of transformers: new numbers of heads and widths, where it can say them."""

import copy
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hessprune.foundation.quiet import quiet
from hessprune.foundation.written import Resized, unlower
from hessprune.planning.uniform import alike
from hessprune.structure.groups import Group
from hessprune.surgery.pretrained import DENSE, config_of

_HEADS, _KEYS, _WIDTH = ("num_attention_heads", "num_heads", "n_head"), "num_key_value_heads", "head_dim"
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
_NEURONS = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "ffn_hidden_size", "d_ff", "n_inner")


def fit_config(model: nn.Module, groups: Sequence[Group], units: Mapping[str, int]) -> None:
    """Write new numbers of units into the configuration of a changed model, in place, if it can say them.

    It can if all layers that are alike have as many units, and if the model's class builds a model of these shapes from
    the new configuration. Otherwise the configuration stays that of the model before.

    Args:
        model: The pruned or widened model.
        groups: Of the model before.
        units: By name of the groups that changed, how many they have now.
    """
    config = config_of(model)
    sizes = None if config is None else _sizes(config, groups, units)
    if not sizes:
        return
    changed = copy.deepcopy(config)
    before = {name: getattr(config, name, None) for name in sizes}
    for name, size in sizes.items():
        setattr(changed, name, size)
    built = _built(model, changed)
    if built is None:
        return
    for name, size in sizes.items():
        setattr(config, name, size)
    setattr(config, DENSE, {**before, **(getattr(config, DENSE, None) or {})})
    _follow(model, built, sizes)


def is_said(model: nn.Module) -> bool:
    """Return whether the configuration of a model, if it has one, says its shapes: then `from_pretrained` reads it."""
    config = config_of(model)
    return config is None or _built(model, config) is not None


def _follow(model: nn.Module, built: nn.Module, sizes: Iterable[str]) -> None:
    """Let forwards that read the changed numbers do so, in the place of sizes that were lowered beside them.

    Args:
        model: The pruned model.
        built: Of the same classes and shapes, from the new configuration.
        sizes: Names of the numbers.
    """
    for name, module in model.named_modules():
        if isinstance(module, Resized):
            names = inspect.unwrap(type(module).forward).__code__.co_names
            if "config" in names and not {*sizes}.isdisjoint(names):
                unlower(module)
                vars(module).update({
                    key: value for key, value in vars(built.get_submodule(name)).items() if type(value) is int
                })  # fmt: skip


def _sizes(config: Any, groups: Sequence[Group], units: Mapping[str, int]) -> dict[str, int] | None:
    """Return the new numbers by their names in the configuration; None if layers that are alike differ."""
    sizes: dict[str, int] = {}
    for members in alike(groups):
        counts = {units.get(group.name, group.num_units) for group in members}
        if len(counts) > 1:
            return None
        group, (now,) = members[0], counts
        for name, size in _named(config, group, now) if now != group.num_units else ():
            if sizes.setdefault(name, size) != size:
                return None
    return sizes


def _named(config: Any, group: Group, now: int) -> Iterator[tuple[str, int]]:
    """Yield the numbers that change with the units of a group."""
    units = group.num_units
    if group.kind == "embedding":
        yield from ((name, now) for name in _HIDDEN if getattr(config, name, None) == units)
        return
    if group.kind in {"qk", "v"}:
        return
    if all(len(piece.index[0]) == 1 for piece in group.slices_with_role("consumer")):
        inner = 4 * getattr(config, "n_embd", 0)  # what GPT-2 takes for `n_inner` where nothing is said
        values = {name: getattr(config, name, None) or inner for name in _NEURONS if hasattr(config, name)}
        yield from ((name, now) for name, value in values.items() if value == units)
        return
    heads = next((name for name in _HEADS if isinstance(getattr(config, name, None), int)), "")
    many = getattr(config, heads, 0)
    keys = getattr(config, _KEYS, None) or many
    hidden = getattr(config, "hidden_size", None)
    produced = [len(piece.index[0]) for piece in group.slices_with_role("producer")]
    by_query = keys != many and produced == [len(piece.index[0]) for piece in group.slices_with_role("consumer")]
    if not many or units != (many // keys if by_query else keys):
        return
    yield heads, many * now // units
    if not by_query and getattr(config, _KEYS, None) is not None:
        yield _KEYS, now
    if hidden is not None and not hasattr(config, "d_kv"):
        yield _WIDTH, getattr(config, _WIDTH, None) or hidden // many


def _built(model: nn.Module, config: Any) -> nn.Module | None:
    """Return what a configuration, as it will be read, gives; None if it is no model of the same shapes."""
    try:
        with quiet(), torch.device("meta"):
            read = type(config).from_dict(json.loads(config.to_json_string()))
            built = type(model)(read)
    except Exception:  # whatever a class does with numbers that it does not expect
        return None
    return built if _shapes(built) == _shapes(model) else None


def _shapes(model: nn.Module) -> Mapping[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
