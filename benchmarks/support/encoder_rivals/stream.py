"""Passes over the calibration samples that start at the block whose units are looked at, not at the embedding.

Layer-wise rivals look at one sub-layer after the other, and what lies before it does not change any more. A *stream*
keeps what the blocks before have made of each batch: 512 sentences of MiniLM are 17 MB. With 6 blocks of 2 sub-layers,
`seen` for all of them costs 9 blocks, not 39.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from support.encoder_rivals.setting import Kept, Setting, Sublayer, gated


class EnoughError(Exception):
    """Ends a forward pass whose rest is not needed."""


class Stream:
    """What the blocks before some block return for each batch; gates and weights before it must not change later."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        names = [re.match(r".*?\.\d+(?=\.)", s.reader) for s in setting.sublayers]
        self.blocks = list(dict.fromkeys(found.group() for found in names if found is not None))
        self.position = 0  # blocks that are kept
        self.kept: list[Any] = [None] * len(setting.batches)

    def start(self, sublayer: Sublayer, kept: Kept | None = None) -> None:
        """Run on to the block of a sub-layer."""
        wanted = next(number for number, name in enumerate(self.blocks) if sublayer.reader.startswith(name + "."))
        for last in range(self.position, wanted):
            with gated(self.setting, {} if kept is None else kept), torch.no_grad():
                found = [self._returned(self.blocks[last], number) for number in range(len(self.kept))]
            self.kept, self.position = found, last + 1

    def _returned(self, block: str, number: int) -> Any:
        """Return what a block returns for a batch."""
        heard: list[Any] = []

        def listen(_: nn.Module, args: Any, out: Any) -> None:
            del args
            heard.append(out)
            raise EnoughError

        handle = self.setting.model.get_submodule(block).register_forward_hook(listen)
        try:
            self.logits(number)
        except EnoughError:
            pass
        finally:
            handle.remove()
        return heard[0]

    def logits(self, number: int) -> Tensor:
        """Return the model's outputs for a batch; the blocks before the position are skipped."""
        with self.resumed(number):
            return self.setting.logits(self.setting.batches[number][0])

    @contextmanager
    def resumed(self, number: int) -> Iterator[None]:
        """Let the blocks before the position return what is kept for a batch."""
        skipped = [self.setting.model.get_submodule(name) for name in self.blocks[: self.position]]
        for block in skipped:
            block.forward = lambda *_, **__: self.kept[number]  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in skipped:
                del block.forward

    @torch.no_grad()
    def seen(self, sublayer: Sublayer, kept: Kept | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield for each batch a reader's inputs `(R, K)`, the residual sum behind it `(R, O)`, the residual alone."""
        self.start(sublayer, kept)
        reader, total = self.setting.reader(sublayer), self.setting.model.get_submodule(sublayer.total)
        with gated(self.setting, {} if kept is None else kept):
            for number, (inputs, _) in enumerate(self.setting.batches):
                heard: dict[str, Tensor] = {}

                def listen(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, heard: dict = heard) -> None:
                    heard["x"], heard["y"] = args[0].flatten(0, -2), out.flatten(0, -2)

                def add(_: nn.Module, args: tuple[Tensor, ...], heard: dict = heard) -> None:
                    heard["sum"] = args[0].flatten(0, -2)
                    raise EnoughError

                first, second = reader.register_forward_hook(listen), total.register_forward_pre_hook(add)
                try:
                    self.logits(number)
                except EnoughError:
                    pass
                finally:
                    first.remove()
                    second.remove()
                yield _without_padding(heard, self.setting.rows(inputs))


def _without_padding(heard: Mapping[str, Tensor], rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    x, y, whole = (heard[key] if rows is None else heard[key][rows] for key in ("x", "y", "sum"))
    return x, whole, whole - y
