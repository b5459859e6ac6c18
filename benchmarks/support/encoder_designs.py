"""The cells of the studies of encoders: kinds of units, budgets and methods."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import hessprune as hp

OURS: dict[str, tuple[hp.Method, bool, bool | None]] = {
    "joint, compensated": (hp.Joint(refit=True), True, None),
    "joint": (hp.Joint(refit=False), False, None),
    "hap": (hp.HAP(), False, None),
    "sosp-i": (hp.SOSPI(), False, None),
    "magnitude": (hp.Magnitude(), False, None),
    "magnitude, whatever it costs": (hp.Magnitude(), False, False),
    "random": (hp.Random(), False, None),
    "magnitude, compensated": (hp.Magnitude(), True, None),
    "hap, compensated": (hp.HAP(), True, None),
    "nvit": (hp.NViT(), False, None),
}
"""Criteria of hessprune: method, whether survivors compensate, and whether saliencies are taken per cost."""
WITHOUT_DATA = ("magnitude", "magnitude, whatever it costs")
"""What is the same in all draws, and measured in the first one."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The cells of a study."""

    kinds: Mapping[str, tuple[tuple[str, ...], str, tuple[float, ...]]]
    """Kinds of cells: units that may go, what is budgeted, and the kept shares."""
    turns: tuple[tuple[str, ...], ...]
    """Methods in the order of cells: what tells most first, in all draws, and what takes long late."""
    only: Mapping[str, str] = field(default_factory=dict)
    """The kind of cells that a published formula is for, where it is not for all."""
    ahead: tuple[tuple[str, float, str, float], ...] = ()
    """Claims: kind, kept share, rival (empty for the best of all, "rivals" for the best of these), points ahead."""
    rivals: tuple[str, ...] = ()
    """The best methods of others."""

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods."""
        return tuple(dict.fromkeys(itertools.chain(*self.turns)))

    def cells(self, draws: Iterable[int], shares: int) -> Iterator[tuple[int, str, float, str]]:
        """Yield draw, kind, share and method of all cells, of the first `shares` shares."""
        for methods, draw in itertools.product(self.turns, draws):
            for kind, method in itertools.product(self.kinds, methods):
                if draw and method in WITHOUT_DATA:
                    continue
                if self.only.get(method, kind) == kind and (kind == "both" or method != WITHOUT_DATA[1]):
                    yield from ((draw, kind, share, method) for share in self.kinds[kind][2][:shares])


FIRST = ("joint, compensated", "michel", "kwon")
NEURONS = ("vbp", "dvbp+ob2c", "corp")
PARTS_OF_OURS = ("joint", "magnitude, compensated", "hap, compensated")
"""What tells selection and compensation apart, measured where both kinds of units go."""
SENTENCES = Design(
    kinds={
        "both": (("heads", "neurons"), "macs", (0.3, 0.2, 0.5, 0.4)),
        "heads": (("heads",), "units", (0.4, 0.25, 0.5, 0.7)),
        "neurons": (("neurons",), "units", (0.3, 0.2, 0.5, 0.4)),
    },
    turns=(FIRST, ("k-prune",), (*(name for name in OURS if name not in FIRST), *NEURONS, "osscar")),
    only={"michel": "heads"} | dict.fromkeys(NEURONS, "neurons") | dict.fromkeys(PARTS_OF_OURS, "both"),
    ahead=(
        *((kind, share, "", 0.0) for kind in ("both", "heads", "neurons") for share in (0.5, 0.4, 0.3, 0.25, 0.2)),
        ("both", 0.3, "k-prune", 1.0),
        ("both", 0.2, "k-prune", 1.0),
        ("both", 0.3, "kwon", 5.0),
        ("both", 0.2, "kwon", 5.0),
        ("heads", 0.4, "michel", 0.8),
    ),
)
PICTURES = Design(
    kinds={
        "both": (("heads", "neurons"), "macs", (0.5, 0.3, 0.4)),
        "heads": (("heads",), "units", (0.5,)),
        "neurons": (("neurons",), "units", (0.5, 0.25)),
    },
    turns=(
        ("joint, compensated", *NEURONS, "nvit", "magnitude", "magnitude, whatever it costs", "random"),
        ("hap", "sosp-i", "joint", "magnitude, compensated", "osscar", "kwon", "k-prune"),
    ),
    ahead=(
        *((kind, share, "rivals", 2.0) for kind in ("both", "heads") for share in (0.5, 0.4, 0.3)),
        # Half of the neurons are of no use to this network: the rivals lose 0.3 to 1.4 points.
        *(("neurons", share, "rivals", 0.0) for share in (0.5, 0.25)),
        *((kind, share, "", 0.0) for kind in ("both", "heads", "neurons") for share in (0.5, 0.4, 0.3, 0.25)),
    ),
    rivals=(*NEURONS, "nvit", "magnitude", "magnitude, whatever it costs", "random"),
)
