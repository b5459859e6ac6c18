"""Layers that stay in FP32: those that the user keeps, and those for which there is no integer kernel."""

import fnmatch
from collections.abc import Mapping, Sequence

from torch.fx import GraphModule, Node

from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.checks import nearest
from hessprune.foundation.formatting import shortened, shown
from hessprune.foundation.modules import split_name
from hessprune.operators.table import integer_kind
from hessprune.quantize.rewrite import WEIGHT_AXES, has_weight, layer_name


def kept_layers(graph: GraphModule, patterns: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the layers that match the patterns, each with the reason."""
    if isinstance(patterns, str):
        raise ArgumentError(
            f"`keep_fp32` must be a list of patterns, got {shown(patterns)}. Write [{patterns!r}], or pass "
            "hp.choose_fp32_layers(model, example_inputs, batches)."
        )
    names = list(
        dict.fromkeys(layer_name(node) for node in graph.graph.nodes if integer_kind(node.target) in WEIGHT_AXES)
    )
    kept: dict[str, str] = {}
    for pattern in patterns:
        named = fnmatch.filter(names, pattern)
        if not named:
            raise ArgumentError(
                f"`keep_fp32` must name layers of the model, got {shown(pattern)}.{nearest(pattern, names)} "
                f"Known: {', '.join(names)}."
            )
        reason = patterns[pattern] if isinstance(patterns, Mapping) else "kept on request"
        kept = dict.fromkeys(named, reason) | kept
    return {name: kept[name] for name in names if name in kept}


def fp32_layers_of(graph: GraphModule, kept: Mapping[str, str]) -> dict[str, str]:
    """Return all layers that stay in FP32, each with the reason."""
    fp32_layers = dict(kept)
    names = {name for name, _ in graph.named_parameters(remove_duplicate=False)}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target in names:
            for user in node.users:
                if integer_kind(user.target) not in WEIGHT_AXES:
                    fp32_layers.setdefault(split_name(node.target)[0], f"no integer kernel for {_operator_name(user)}")
    for node in graph.graph.nodes:
        if integer_kind(node.target) in WEIGHT_AXES and not has_weight(node):
            fp32_layers.setdefault(layer_name(node), "weights that depend on the inputs")
    layers = [node for node in graph.graph.nodes if integer_kind(node.target) in WEIGHT_AXES]
    if all(layer_name(node) in fp32_layers for node in layers):
        if not any(layer_name(node) in kept for node in layers):
            others = {name: why for name, why in fp32_layers.items() if not why.endswith(("embedding", "norm"))}
            reasons = [f"{name!r} with {reason}" for name, reason in others.items()] or ["no such layer"]
            raise UnsupportedModelError(
                f"`model` must hold nn.Linear or convolutions for INT8, got {shortened(reasons, 2)}. Write layers of "
                "another form as nn.Linear, such as the Conv1D of transformers, or deploy the float model."
            )
        raise UnsupportedModelError(
            "`model` must have a convolution or linear layer to quantise, got none outside `keep_fp32`. Shorten "
            "`keep_fp32`, or deploy the float model."
        )
    return fp32_layers


def _operator_name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]
