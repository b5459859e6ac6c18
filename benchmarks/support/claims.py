"""A benchmark is a list of claims, each with its value, its target and whether it holds, beside the environment."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "hessprune", "pyhessian", "backpack-for-pytorch", "curvlinops-for-pytorch")


class Claims:
    """Collects claims and writes them as JSON."""

    def __init__(self) -> None:
        self.claims: list[dict[str, Any]] = []

    def add(self, name: str, value: float | str, target: str, *, holds: bool | None, peer: Any = None) -> None:
        """Add one claim; `holds` is None where it could not be tried, and `value` says why."""
        rounded = round(value, 4) if isinstance(value, float) else value
        self.claims.append({"name": name, "value": rounded, "target": target, "peer": peer, "holds": holds})
        verdict = {True: "holds", False: "FAILS", None: "untried"}[holds]
        print(f"{verdict:8} {name}: {rounded} (target {target}, peer {peer})")

    def at_least(self, name: str, value: float, bound: float, peer: Any = None) -> None:
        """Claim `value ≥ bound`."""
        self.add(name, float(value), f">= {bound:g}", holds=bool(value >= bound), peer=peer)

    def at_most(self, name: str, value: float, bound: float, peer: Any = None) -> None:
        """Claim `value ≤ bound`."""
        self.add(name, float(value), f"<= {bound:g}", holds=bool(value <= bound), peer=peer)

    def write(self, path: Path | None, **extra: Any) -> None:
        """Write `{"claims": …, "environment": …}` and whatever else was measured."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"claims": self.claims, "environment": environment(), **extra}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


NEEDED = ("cifar10_raw_subset.npz", "weights")


def arguments(
    docstring: str | None, more: Callable[[argparse.ArgumentParser], object] | None = None
) -> argparse.Namespace:
    """Parse what every script takes, and `more`; one clear line where the data are missing."""
    parser = argparse.ArgumentParser(description=(docstring or "").split("\n\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a short run: at most 60 s on 2 cores")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"), help=f"holds {', '.join(NEEDED)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    if more is not None:
        more(parser)
    options = parser.parse_args()
    missing = [name for name in NEEDED if not (options.data_root / name).exists()]
    if missing:
        parser.error(f"--data-root must hold {' and '.join(NEEDED)}, but {options.data_root} lacks {missing[0]}")
    torch.set_num_threads(options.threads)
    return options


def environment() -> dict[str, Any]:
    """Return versions, hardware and load."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": found,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "load": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return each run's shortest time in seconds, over rounds in which all take turns, so that ratios hold."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the rank correlation of two vectors."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])
