"""Two parts of the page: the table of layers, and the files beside the report with the lines that load them."""

from collections.abc import Iterator
from typing import Any

from hessprune.lab.report.formats import format_count, format_ms
from hessprune.lab.report.run_report import LayerRow, RunReport

OPEN = 24
"""Layers up to which the table is shown without a click."""
MOST = 6
"""Stages whose seconds are shown one by one."""
COLUMNS = ("Channels", "MACs", "Parameters", "Milliseconds")


def layer_columns(report: RunReport) -> tuple[str, ...]:
    """Return the headings of the numbers; no milliseconds where layers were not timed."""
    return COLUMNS if any(row.ms for row in report.table) else COLUMNS[:-1]


def layer_rows(report: RunReport) -> Iterator[dict[str, Any]]:
    """Yield each layer: its name, pairs of numbers before and after by column, and what decided."""
    for row in report.table:
        pairs = zip(layer_columns(report), _pairs(row), strict=False)
        yield {"name": row.name, "pairs": tuple(pairs), "why": row.why}


def _pairs(row: LayerRow) -> Iterator[tuple[str, str]]:
    yield str(row.width[0]), str(row.width[1])
    for before, after in (row.macs, row.params):
        yield format_count(before), format_count(after)
    yield (format_ms(row.ms[0]), format_ms(row.ms[1])) if row.ms else ("–", "–")


def layer_note(report: RunReport) -> str:
    """Say how layers were timed; empty if they were not."""
    if not any(row.ms for row in report.table):
        return ""
    number = report.environment.get("latency_batch_size", 1)
    noun = report.data.get("noun", "image")
    timed = f"{number} {noun}s" if number != 1 else f"one {noun}"
    whole = [sum(row.ms[place] for row in report.table if row.ms) for place in (0, 1)]
    return (
        f"Milliseconds are those of each layer's own call in torch, {timed}, one thread, in floats: "
        f"{format_ms(whole[0])} → {format_ms(whole[1])} in all."
    )


def files_beside(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield the files beside the report, and what they are."""
    settings = report.settings
    known = {
        "model/": "the pruned and fine-tuned model, for hp.load",
        "model.onnx": "the same for ONNX Runtime" if settings.get("export", {}).get("onnx") else "",
        "int8.onnx": "in integers" if settings.get("quantize") else "",
        "recipe.yaml": "every setting",
        "report.json": "every number of this page",
    }
    yield from ((name, text) for name, text in known.items() if text)


def main_times(report: RunReport) -> Iterator[tuple[str, float]]:
    """Yield the stages that took the most, the longest first, and what all others took together."""
    ranked = sorted(report.seconds.items(), key=lambda item: -item[1])
    yield from ranked[:MOST]
    if ranked[MOST:]:
        yield f"{len(ranked) - MOST} more", sum(seconds for _, seconds in ranked[MOST:])


def command(report: RunReport) -> str:
    """Return the command that repeats a run, from within its folder."""
    data = report.settings.get("data", {})
    root = " --data-root DATA" if isinstance(data, dict) and data.get("root") else ""
    return f"hessprune run recipe.yaml{root} --out again"
