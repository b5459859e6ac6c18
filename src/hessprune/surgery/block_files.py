"""Blocks that are finished, one file each: a killed run reads them again and continues behind them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
        return cls(
            folder=writable_folder(folder),
            key=content_sha256([models, sorted(removed.items()), parts]),
            answers=answers(dense, samples[0].inputs),
            tolerance=tolerance_of(dense),
        )

    def restore(self, name: str, own: Mapping[str, Tensor]) -> bool:
        """Read the tensors of a finished part, such as `"block-000"`, in place; return False if there is none.

        It must be of these models, this plan and these samples. A file that is damaged, or belongs to something else,
        counts as none; a warning in the log says so.
        """
        path = self._path(name)
        if path is None or not path.exists():
            return False
        tensors = self._held(path)
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in own.items()}:
            _log.warning("%s is damaged, or of another model, plan or data: it is made anew", path)
            return False
        with torch.no_grad():
            for key, tensor in tensors.items():
                own[key].copy_(tensor)
        return True

    def _held(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a file; none if they are not of these models, this plan and these samples."""
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            ours = facts["key"] == self.key and agree(facts["answers"], self.answers, self.tolerance)
            return tensors if ours and facts[SUM] == tensors_sha256(tensors) else {}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError):  # of another program
            return {}

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


def tensors_of(block: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, shared ones once."""
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}
