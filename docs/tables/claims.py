"""What the benchmarks claim, the demo, and the results on the front page."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hessprune.lab.report.comparison import Comparison
from tables.comparisons import headline
from tables.records import DOCS, RESULTS, ROOT, record

FRONT = ("demo", "ehap-vgg16", "sst2-minilm")
"""Records that the front page shows."""


def benchmark_tables() -> str:
    """Return every claim of every committed benchmark."""
    tables = []
    for path, content in benchmarks():
        claims = content["claims"]
        rows = [f"| {c['name']} | {_shown(c['value'])} | {c['target']} | {_shown(c['peer'])} |" for c in claims]
        head = [f"## {_claim(path)}", "", "```sh", _command(path), "```", ""]
        head += [textwrap.fill(content["note"], 120), ""] if "note" in content else []
        ends = _ends(content["counts"]) if "counts" in content else []
        tables.append("\n".join([*head, "| figure | measured | target | peers |", "|---|---|---|---|", *rows, *ends]))
    return "\n\n".join(tables) or "None is committed yet."


def _ends(counts: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    """Return a table of how many models of each source came to which end, by tool."""
    outcomes = list(
        dict.fromkeys(outcome for tools in counts.values() for found in tools.values() for outcome in found)
    )
    lines = ["", f"| models of | by | {' | '.join(outcomes)} |", f"|---|---|{'---|' * len(outcomes)}"]
    for source, tools in counts.items():
        for tool, found in tools.items():
            if any(found.values()):
                lines.append(f"| {source} | {tool} | {' | '.join(str(found[outcome]) for outcome in outcomes)} |")
    return lines


def demo_rows() -> str:
    """Return the demo's results as a table, from the numbers that are committed."""
    models = record(DOCS / "results" / "demo.json")["models"]
    dense = models["dense"]
    lines = ["| | test accuracy | MACs | parameters |", "|---|---|---|---|"]
    for name, result in models.items():
        shares = [f"{result[key]:,} ({result[key] / dense[key]:.0%})".replace(",", " ") for key in ("macs", "params")]
        lines.append(f"| {name.replace('-', ', ')} | {result['accuracy']:.1%} | {' | '.join(shares)} |")
    return "\n".join(lines)


def result_rows() -> str:
    """Return four results for the front page: what, accuracy, milliseconds, the command."""
    lines = ["| what | accuracy | milliseconds | again with |", "|---|---|---|---|"]
    for name in FRONT:
        found = record(DOCS / "results" / f"{name}.json")
        models = found["models"]
        dense, final = models["dense"], models.get("int8", models["finetuned"])
        times = [model.get("latency_ms") for model in (dense, final)]
        shown = f"{times[0]:.3g} → {times[1]:.3g}" if all(times) else "not timed"
        what = (
            f"{found['title']}, {final['macs'] / dense['macs']:.0%} of the MACs{', INT8' if 'int8' in models else ''}"
        )
        command = found["command"].partition(" --set")[0]
        lines.append(f"| {what} | {dense['accuracy']:.1%} → {final['accuracy']:.1%} | {shown} | `{command}` |")
    found = Comparison.load(DOCS / "results" / "oneshot" / "resnet56-all.json")
    rows = {method: row for (method, budget), row in found.rows(*found.stages[-1]).items() if budget == 0.5}
    rivals = ", ".join(f"`{name}` {rows[name]}" for name in ("magnitude", "random"))
    text = f"{found.dense['accuracy']:.1%} → `joint` {rows['joint']} %; {rivals}"
    lines.append(f"| ResNet-56, half of the MACs, no training | {text} | | `make reproduce-oneshot` |")
    return "\n".join(lines)


def summary_rows() -> str:
    """Return one row for each committed result: what, how it went, the command that makes it."""
    lines = ["| what | result | command |", "|---|---|---|"]
    for path in sorted((DOCS / "results").glob("*.json")):
        found = record(path)
        dense, final = found["models"]["dense"], found["models"]["finetuned"]
        what = f"{found['title']}, {final['macs'] / dense['macs']:.0%} of the MACs"
        result = f"{_judged(dense, final)}{_in_integers(found['models'])}"
        lines.append(f"| {what} | {result} | `{found['command']}` |")
    for kind in ("oneshot", "finetuned"):
        lines += [headline(path) for path in sorted((DOCS / "results" / kind).glob("*.json"))]
    for path, content in benchmarks():
        lines.append(f"| {_claim(path)} | {_tally(content['claims'])} | `{_command(path)}` |")
    return "\n".join(lines)


def _tally(claims: list[dict[str, Any]]) -> str:
    """Say how many claims hold, and how many could not be tried."""
    held, untried = (sum(claim["holds"] is verdict for claim in claims) for verdict in (True, None))
    tally = f"{held} of {len(claims) - untried} figures on target"
    return f"{tally}, {untried} not measured" if untried else tally


def _judged(dense: dict[str, Any], final: dict[str, Any]) -> str:
    """Say what became of the accuracy, or of the perplexity of a language model."""
    if dense.get("perplexity") is not None:
        return f"perplexity {dense['perplexity']:.1f} → {final['perplexity']:.1f}"
    return f"accuracy {dense['accuracy']:.1%} → {final['accuracy']:.1%}"


def _in_integers(models: dict[str, dict[str, float]]) -> str:
    """Say what INT8 did to accuracy, size and, where it was timed, latency."""
    dense, int8 = models["dense"], models.get("int8")
    if int8 is None:
        return ""
    faster = f", {dense['latency_ms'] / int8['latency_ms']:.1f} × as fast" if int8.get("latency_ms") else ""
    return f"; in INT8 {int8['accuracy']:.1%}{faster}, 1/{dense['size_bytes'] / int8['size_bytes']:.0f} of the size"


def benchmarks() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield what every benchmark that states claims has written."""
    for path in sorted(RESULTS.glob("*.json")):
        content = record(path)
        if isinstance(content, dict) and "claims" in content:
            yield path, content


def _claim(path: Path) -> str:
    """Return the claim with which a benchmark's script opens."""
    text = (ROOT / "benchmarks" / f"{path.stem}.py").read_text("utf-8")
    claim = re.sub(r'^"""(?:Claims?: )?', "", text).split("\n\n")[0]
    return (claim[0].upper() + claim[1:]).replace("\n", " ").rstrip(".")


def _command(path: Path) -> str:
    own = record(path).get("arguments", "")
    return f"python benchmarks/{path.stem}.py {own} --out benchmarks/results/{path.name}".replace("  ", " ")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
