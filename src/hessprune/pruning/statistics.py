"""Statistics of a model on its data, measured once: any number of budgets is planned and compensated from them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hessprune.errors import ArgumentError, CheckpointError
from hessprune.foundation.answers import agree
from hessprune.foundation.files import replacing
from hessprune.foundation.formatting import bytes_text, counted, shown
from hessprune.foundation.hashing import tensors_sha256
from hessprune.layers.input_moments import InputMoments
from hessprune.methods.tensors import saliency_from, saliency_tensors
from hessprune.methods.values import Saliency

FORMAT = 2


CAUSES = {
    "data": ", and batches that are the same on each pass: augmentation must draw from torch's generators",
    "loss": ", and a loss that keeps nothing from call to call: a count or a cache makes it another one",
}
"""Differences that the same arguments may have, by what differs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The model, units, data and loss of a measurement: its statistics serve no others."""

    model: str
    """SHA-256 of the weights."""
    architecture: str
    """SHA-256 of the modules, their settings, and forwards of their own."""
    groups: str
    """SHA-256 of the groups."""
    data: str
    """SHA-256 of all batches, inputs and targets."""
    loss: str
    """Its name, and a hash of what it computes unless it comes with a package."""
    outputs: Mapping[str, float] | None
    seed: int
    answers: tuple[float, ...]
    """The model's answers to samples of the first batch: two forwards may differ where weights are equal."""
    value: tuple[float, ...]
    """The loss on these samples, if one is given."""
    tolerance: float = 1e-3
    """The largest distance of answers and value, relative to their size: no two machines round alike."""

    def difference(self, other: "Origin") -> tuple[str, Any, Any] | None:
        """Return the first field that differs, and both values; None if one stands for the other."""
        for name in ("model", "architecture", "groups", "data", "loss", "outputs", "seed"):
            if getattr(self, name) != getattr(other, name):
                return name, getattr(self, name), getattr(other, name)
        pairs = (self.answers, other.answers, "outputs of the model"), (self.value, other.value, "value of the loss")
        for ours, theirs, words in pairs:
            if not agree(ours, theirs, self.tolerance):
                return words, [f"{number:.4g}" for number in ours[:3]], [f"{number:.4g}" for number in theirs[:3]]
        return None


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Statistics:
    """Saliencies, and the moments of layer inputs from which survivors are refitted; from `hp.measure`.

    Example:
        >>> import tempfile, torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        >>> stats = hp.measure(net, x[:1], [x])
        >>> file = stats.save(tempfile.mkdtemp() + "/stats.safetensors")
        >>> same = hp.Statistics.load(file)
        >>> hp.prune(net, x[:1], [x], budget=hp.Budget(macs=0.5), stats=same).plan.num_removed
        4
    """

    saliencies: Mapping[str, Saliency]
    """By method, as text."""
    moments: Mapping[str, InputMoments] | None
    """By weight; None if there will be no compensation."""
    origin: Origin
    num_samples: int
    seconds: float
    """Wall time of the measurement."""

    @property
    def num_bytes(self) -> int:
        """Size of the moments in memory."""
        return sum(held.covariance.nbytes + held.mean.nbytes for held in (self.moments or {}).values())

    def check(self, origin: Origin) -> None:
        """Raise unless they were measured on the same model, units, data and loss.

        Raises:
            ArgumentError: They were not; the message says what differs.
        """
        difference = self.origin.difference(origin)
        if difference is not None:
            name, ours, asked = difference
            raise ArgumentError(
                f"`stats` must be measured on the same {name}, got {_short(ours)} instead of {_short(asked)}. "
                f"Call hp.measure(model, example_inputs, batches) with the arguments of hp.prune{CAUSES.get(name, '')}."
            )

    def save(self, path: str | Path) -> Path:
        """Write everything into one file, without pickle.

        Args:
            path: Of a safetensors file.

        Raises:
            OutputError: The file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        saliencies = {}
        for number, (method, values) in enumerate(self.saliencies.items()):
            own, saliencies[method] = saliency_tensors(values, f"{number}:")
            tensors |= own
        for name, held in (self.moments or {}).items():
            tensors |= {f"mean:{name}": held.mean, f"covariance:{name}": held.covariance}
        facts = {
            "format": FORMAT,
            "sha256": tensors_sha256(tensors),
            "origin": asdict(self.origin),
            "saliencies": saliencies,
            "moments": None
            if self.moments is None
            else {name: (held.rows, held.biased) for name, held in self.moments.items()},
            "num_samples": self.num_samples,
            "seconds": self.seconds,
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"hessprune_statistics": json.dumps(facts)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or holds no statistics.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["hessprune_statistics"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if facts["format"] > FORMAT:
                raise CheckpointError(
                    f"file '{path}' has format {shown(facts['format'])}, this version reads {FORMAT}. "
                    "Upgrade hessprune."
                )
            if facts["sha256"] != tensors_sha256(tensors):
                raise CheckpointError(
                    f"file '{path}' must hold statistics, got other numbers than were written. "
                    "Write it anew: hp.measure(…).save(path)."
                )
            return cls(
                saliencies={
                    method: saliency_from(tensors, own, f"{number}:")
                    for number, (method, own) in enumerate(facts["saliencies"].items())
                },
                moments=_moments(tensors, facts["moments"]),
                origin=_origin(facts["origin"]),
                num_samples=facts["num_samples"],
                seconds=facts["seconds"],
            )
        except CheckpointError:
            raise
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise CheckpointError(
                f"file '{path}' must hold statistics, got {type(error).__name__}: {reason}. "
                "Write it anew: hp.measure(…).save(path)."
            ) from error

    def __str__(self) -> str:
        """Return five lines: what, from which data, for which model, how large, how long."""
        methods, first = ", ".join(self.saliencies), next(iter(self.saliencies.values()))
        units = counted(sum(map(len, first.values())), "unit")
        origin = self.origin
        return "\n".join([
            f"saliencies by {methods}: {units} in {counted(len(first), 'group')}",
            f"input moments of {counted(len(self.moments or {}), 'layer')}, {bytes_text(self.num_bytes)}",
            f"{counted(self.num_samples, 'sample')}, loss: {origin.loss}, seed {origin.seed}",
            f"model {origin.model[:8]}, groups {origin.groups[:8]}, data {origin.data[:8]}",
            f"measured in {self.seconds:.1f} s",
        ])  # fmt: skip

    def __repr__(self) -> str:
        """Return the same."""
        return str(self)


def _origin(facts: Mapping[str, Any]) -> Origin:
    """Return the origin that a file names."""
    return Origin(**{**facts, "answers": tuple(facts["answers"]), "value": tuple(facts["value"])})


def _moments(
    tensors: Mapping[str, Tensor], facts: Mapping[str, tuple[int, bool]] | None
) -> dict[str, InputMoments] | None:
    """Return the moments of each layer, from tensors of a file, the number of rows, and whether there is a bias."""
    if facts is None:
        return None
    return {
        name: InputMoments(
            mean=tensors[f"mean:{name}"], covariance=tensors[f"covariance:{name}"], rows=rows, biased=biased
        )
        for name, (rows, biased) in facts.items()
    }


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else shown(value)
