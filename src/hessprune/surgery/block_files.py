"""Blocks that are finished, one file each: a killed run reads them again and continues behind them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hessprune.foundation.answers import agree, answers, tolerance_of
from hessprune.foundation.files import replacing, writable_folder
from hessprune.foundation.hashing import tensors_sha256
from hessprune.foundation.identity import architecture_sha256, content_sha256
from hessprune.foundation.tensors import named_tensors
from hessprune.planning.plan import Plan
from hessprune.surgery.calibration import Samples

KEY, SUM = "hessprune_block", "sha256"
UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError)
"""Errors of reading a file that is damaged, or of another program."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFiles:
    """A folder with one file for each finished block, or none."""

    folder: Path | None
    key: str = ""
    """Hash of all that decides the blocks: both models, the plan and the samples."""
    answers: tuple[float, ...] = ()
    """The dense model's answers to a few samples, which its weights alone do not tell."""
    tolerance: float = 1e-3

    @classmethod
    def of(
        cls, folder: Path | None, dense: nn.Module, pruned: nn.Module, plan: Plan, samples: Sequence[Samples]
    ) -> "BlockFiles":
        """Return the files of one refit in a folder."""
        if folder is None:
            return cls(folder=None)
        models = [(architecture_sha256(model), tensors_sha256(dict(named_tensors(model)))) for model in (dense, pruned)]
        removed = {name: [*units] for name, units in plan.removed.items()}
        parts = [(part.inputs, part.places) for part in samples]
        files = cls(
            folder=writable_folder(folder),
            key=content_sha256([models, sorted(removed.items()), parts]),
            answers=answers(dense, samples[0].inputs),
            tolerance=tolerance_of(dense),
        )
        facts = [_facts_of(path) for path in sorted(folder.glob("*.safetensors"))]
        if others := sum(fact is not None and not files._is_ours(fact) for fact in facts):
            _log.warning("%d files in %s are of another model, plan or data: they are made anew", others, folder)
        return files

    def restore(self, name: str, own: Mapping[str, Tensor]) -> bool:
        """Read the tensors of a finished part, such as `"block-000"`, in place; return False if there is none.

        It must be of these models, this plan and these samples. A file that belongs to something else counts as none,
        and so does a damaged one; a warning in the log says so.
        """
        path = self._path(name)
        if path is None or not path.exists():
            return False
        facts = _facts_of(path)
        if facts is not None and not self._is_ours(facts):
            return False
        tensors = _held(path, facts)
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in own.items()}:
            _log.warning("%s is damaged, or of another program: it is made anew", path)
            return False
        with torch.no_grad():
            for key, tensor in tensors.items():
                own[key].copy_(tensor)
        return True

    def _is_ours(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a file is of these models, this plan and these samples."""
        return facts["key"] == self.key and agree(facts["answers"], self.answers, self.tolerance)

    def keep(self, name: str, own: Mapping[str, Tensor]) -> None:
        """Write the tensors of a finished part."""
        path = self._path(name)
        if path is None:
            return
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in own.items()}
        facts = {"key": self.key, "answers": self.answers, SUM: tensors_sha256(tensors)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={KEY: json.dumps(facts)})

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"


def _facts_of(path: Path) -> dict[str, Any] | None:
    """Return what a file says of itself; None where it is damaged, or of another program."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})[KEY])
        return facts if {"key", "answers", SUM} <= facts.keys() else None
    except (*UNREADABLE, AttributeError):
        return None


def _held(path: Path, facts: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Return the tensors of a file; none where it is damaged."""
    if facts is None:
        return {}
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except UNREADABLE:
        return {}
    return tensors if facts[SUM] == tensors_sha256(tensors) else {}


def tensors_of(block: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, shared ones once."""
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}
