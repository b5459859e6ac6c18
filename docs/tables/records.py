"""Where the records lie, and how a value of them reads."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
RESULTS = ROOT / "benchmarks" / "results"


def record(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds."""
    return json.loads(path.read_text("utf-8"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> str:
    """Return `84.1 ± 0.6`; of a single draw the value alone."""
    if mean(values) >= 1000:
        return f"{mean(values):,.0f}".replace(",", " ")
    more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{more}"
