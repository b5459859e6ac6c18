"""Blocks that are finished, one file each: a killed run reads them again and continues behind them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hessprune.foundation.files import replacing, sha256, writable_folder
from hessprune.foundation.hashing import tensors_sha256
from hessprune.foundation.tensors import named_tensors
from hessprune.foundation.trees import tensors_in
from hessprune.planning.plan import Plan
from hessprune.surgery.calibration import Samples

KEY, SUM = "hessprune_block", "sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFiles:
    """A folder with one file for each finished block, or none."""

    folder: Path | None
    key: str = ""
    """Hash of all that decides the blocks: both models, the plan and the samples."""

    @classmethod
    def of(
        cls, folder: Path | None, dense: nn.Module, pruned: nn.Module, plan: Plan, samples: Sequence[Samples]
    ) -> "BlockFiles":
        """Return the files of one refit in a folder."""
        if folder is None:
            return cls(folder=None)
        inputs = {str(n): tensor for n, tensor in enumerate(tensors_in([part.inputs for part in samples]))}
        parts = [tensors_sha256(dict(named_tensors(model))) for model in (dense, pruned)]
        removed = json.dumps({name: [*units] for name, units in plan.removed.items()}, sort_keys=True)
        return cls(folder=writable_folder(folder), key=sha256("".join([*parts, tensors_sha256(inputs), removed])))

    def restore(self, number: int, block: nn.Module) -> bool:
        """Read a finished block in place; return False if there is none of these models, this plan and these samples.

        A file with other numbers than were written counts as none.
        """
        path = self._path(number)
        if path is None or not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError, KeyError):
            return False
        if facts["key"] != self.key or facts[SUM] != tensors_sha256(tensors):
            return False
        own = _tensors(block)
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        return True

    def keep(self, number: int, block: nn.Module) -> None:
        """Write a finished block."""
        path = self._path(number)
        if path is None:
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(block).items()}
        facts = {"key": self.key, SUM: tensors_sha256(tensors)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={KEY: json.dumps(facts)})

    def _path(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"block-{number:03d}.safetensors"


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, shared ones once."""
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}
