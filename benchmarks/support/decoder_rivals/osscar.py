"""OSSCAR (Meng et al. 2024, arXiv 2403.12983), block by block, the same share of each layer.

Each reader is a quadratic problem on its inputs in the model that is pruned so far: elimination, then a local search,
then least squares on what stays, as for encoders in `encoder_rivals/osscar.py`, about zero, for there is no bias.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from support.decoder_rivals.setting import (
    CHUNK,
    EnoughError,
    Kept,
    Setting,
    Sublayer,
    Sums,
    body,
    cut,
    listening,
    uniform,
)
from support.encoder_rivals.osscar import Layer, eliminate, swapped


def by_block(sublayers: Sequence[Sublayer]) -> Iterator[tuple[str, list[Sublayer]]]:
    """Yield the module name of each block with its sub-layers, in forward order."""
    blocks: dict[str, list[Sublayer]] = {}
    for s in sublayers:
        prefix, _, rest = s.reader.partition(".layers.")
        blocks.setdefault(f"{prefix}.layers.{rest.split('.')[0]}", []).append(s)
    yield from blocks.items()


class Flow:
    """The states between the blocks of a decoder, for all calibration sequences."""

    def __init__(self, model: nn.Module, ids: Tensor, first: str) -> None:
        self._calls: list[dict[str, Any]] = []
        self.states: list[Tensor] = []

        def hear(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.states.append(args[0] if args else options.pop("hidden_states"))
            self._calls.append(options)
            raise EnoughError

        handle = model.get_submodule(first).register_forward_pre_hook(hear, with_kwargs=True)
        for chunk in ids.split(CHUNK):
            try:
                body(model)(input_ids=chunk, use_cache=False)
            except EnoughError:
                continue
        handle.remove()

    def seen(self, block: nn.Module, reader: nn.Module) -> Sums:
        """Return the sums of what a layer of a block reads."""
        sums = Sums.empty(reader.weight.shape[1])  # type: ignore[union-attr, index]
        with listening(reader, sums.add, stop=True):
            for state, options in zip(self.states, self._calls, strict=True):
                try:
                    block(state, **options)
                except EnoughError:
                    continue
        return sums

    def through(self, block: nn.Module) -> None:
        """Run a block."""
        for place, (state, options) in enumerate(zip(self.states, self._calls, strict=True)):
            out = block(state, **options)
            self.states[place] = out[0] if isinstance(out, tuple) else out


def prune_layer(given: Setting, sublayer: Sublayer, sums: Sums, number: int) -> tuple[Tensor, Tensor]:
    """Return which units of a sub-layer stay, and the reader's weight `(O, K)`."""
    old = given.weight(sublayer).double().T
    layer = Layer(sums.xx / sums.rows, old, sublayer.width)
    stays = swapped(layer, eliminate(layer, number))
    new, mask = torch.zeros_like(old), torch.zeros(sublayer.units, dtype=torch.bool)
    new[layer.columns(stays)], mask[stays] = layer.solve(stays)[0], True
    return mask, new.T.float()


@torch.no_grad()
def osscar(given: Setting) -> nn.Module:
    """Prune in forward order."""
    kept: Kept = {s.name: torch.ones(s.units, dtype=torch.bool) for s in given.sublayers}
    weights: dict[str, Tensor] = {}
    gone = uniform(given)
    flow = Flow(given.model, given.tokens.ids, next(by_block(given.sublayers))[0])
    for name, sublayers in by_block(given.sublayers):
        block = given.model.get_submodule(name)
        dense = {s.reader: given.weight(s).clone() for s in sublayers}
        for s in sublayers:
            if gone[s.name]:
                reader = given.model.get_submodule(s.reader)
                kept[s.name], weights[s.reader] = prune_layer(given, s, flow.seen(block, reader), gone[s.name])
                reader.weight.data.copy_(weights[s.reader])  # type: ignore[operator, union-attr]
        flow.through(block)
        for reader, weight in dense.items():
            given.model.get_submodule(reader).weight.data.copy_(weight)  # type: ignore[operator, union-attr]
    return cut(given, kept, weights)
