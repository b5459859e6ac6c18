"""The studies of encoders, decoders, widened networks, and of training after pruning."""

from pathlib import Path
from typing import Any

from hessprune.lab.report.expansion import Expansion
from tables.records import DOCS, RESULTS, mean, record, spread, table

ENCODERS = {
    "both": ("Heads and neurons", "MACs"),
    "heads": ("Heads alone", "heads"),
    "neurons": ("Neurons alone", "neurons"),
    "both, one epoch": ("Heads and neurons, then an epoch of training", "MACs"),
}
"""Titles of the studies of encoders, and what is removed."""
DECODERS = (
    "joint, compensated", "flap", "osscar", "wanda-sp", "llm-pruner", "minitron", "magnitude", "random",
)  # fmt: skip
"""Methods of the study of decoders."""


def encoder_tables() -> str:
    """Return the tables of the study of sentences."""
    return _tables_of_study(record(RESULTS / "encoders.json"), "sentences")


def picture_tables() -> str:
    """Return the tables of the study of images, and the milliseconds of one image."""
    content = record(RESULTS / "encoders_vit.json")
    lines = ["| MACs kept | torch, ms | ONNX Runtime, ms |", "|---|---|---|"]
    lines += [f"| {row['kept']:.0%} | {row['torch']:.2f} | {row['onnx']:.2f} |" for row in content["latency"] or ()]
    times = ["### Milliseconds of one image, one thread", "\n".join(lines)] if content["latency"] else []
    return "\n\n".join([_tables_of_study(content, "images"), *times])


def _tables_of_study(content: dict[str, Any], noun: str) -> str:
    """Return a table for each kind of units: mean accuracy ± spread over the draws, by method and share removed."""
    parts = []
    for kind, (title, removed) in ENCODERS.items():
        rows = [row for row in content["rows"] if row["kind"] == kind]
        if not rows:
            continue
        shares = sorted({row["share"] for row in rows}, reverse=True)
        found = {(row["method"], row["share"]): [] for row in rows}
        for row in rows:
            found[row["method"], row["share"]].append(100 * row["accuracy"])
        best = {max((key for key in found if key[1] == share), key=lambda k: mean(found[k])) for share in shares}
        lines = [f"### {title}", "", f"{removed} removed:", "", f"| | {' | '.join(f'{1 - s:.0%}' for s in shares)} |"]
        lines.append("|---" * (len(shares) + 1) + "|")
        for method in dict.fromkeys(method for method, _ in found):
            keys = [(method, share) for share in shares]
            shown = [spread(found[k]) if k in found else "–" for k in keys]
            shown = [f"**{text}**" if k in best else text for k, text in zip(keys, shown, strict=True)]
            lines.append(f"| `{method}` | {' | '.join(shown)} |")
        parts.append("\n".join(lines))
    draws = 1 + max(row["draw"] for row in content["rows"])
    head = f"Dense: {100 * content['dense'][0]:.1f} %. Draws of calibration {noun}: {draws}."
    return "\n\n".join([head, *parts])


def decoder_tables() -> str:
    """Return the tables of perplexity of decoders, and what is open."""
    content = record(RESULTS / "decoders.json")
    rows = content["rows"]
    if content["dense"] is None or not rows:
        return "Nothing is measured yet."
    head = f"Perplexity by the share of the blocks' parameters removed; dense: {content['dense']:.1f}."
    parts = [head, *_still_to_measure(rows), _decoder_table([row for row in rows if "steps" not in row])]
    trained = [row for row in rows if "steps" in row]
    if trained:
        table = _decoder_table(trained)
        parts += [f"After {trained[0]['steps']} steps of distillation, of the first draw:", table]
    if whole := content.get("whole"):
        shown = ", ".join(f"{name} {value:.1f}" for name, value in whole.items())
        parts.append(f"On all tokens of test, with 20% removed from the first draw's model: {shown}.")
    return "\n\n".join(parts)


def _decoder_table(rows: list[dict[str, Any]]) -> str:
    """Return mean perplexity ± spread over the draws, by method and share removed."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        found.setdefault((row["method"], row["share"]), []).append(row["perplexity"])
    shares = sorted({share for _, share in found})
    columns = [[key for key in found if key[1] == share] for share in shares]
    best = {min(keys, key=lambda k: mean(found[k])) for keys in columns if len(keys) > 1}
    lines = [f"| | {' | '.join(f'{share:.0%}' for share in shares)} |", "|---" * (len(shares) + 1) + "|"]
    methods = {method for method, _ in found}
    for method in DECODERS if len(shares) > 1 else filter(methods.__contains__, DECODERS):
        shown = [spread(found[method, share]) if (method, share) in found else "–" for share in shares]
        marked = [f"**{text}**" if (method, share) in best else text for text, share in zip(shown, shares, strict=True)]
        lines.append(f"| `{method}` | {' | '.join(marked)} |")
    return "\n".join(lines)


def _still_to_measure(rows: list[dict[str, Any]]) -> list[str]:
    """Say in short lines which of the planned perplexities are measured; nothing once all of them are."""
    wanted = 2 * 4 * len(DECODERS) + len(DECODERS)
    if len(rows) >= wanted:
        return []
    planned = f"{wanted} perplexities ({len(DECODERS)} methods, 4 shares, 2 draws of texts; one share distilled)"
    return [f"Measured so far: {len(rows)} of {planned}.\nThe others are not measured yet."]


def expansion_tables() -> str:
    """Return a table of every network that was widened: accuracy and size by where it grew."""
    parts = [_expansion(path) for path in sorted((DOCS / "results" / "expansion").glob("*.json"))]
    return "\n\n".join(parts) or "Nothing is measured yet."


def _expansion(path: Path) -> str:
    found = Expansion.load(path)
    dense, rows = found.rows[0], []
    for row in found.rows:
        gain, error = found.gains.get(row.name, (None, None))
        above = "" if gain is None else f"{gain:+.2f}".replace("-", "−") + ("" if error is None else f" ± {error:.2f}")
        shares = (f"{own / whole:.2f} ×" for own, whole in ((row.params, dense.params), (row.macs, dense.macs)))
        rows.append([row.name, str(row), *shares, above])
    head = (
        f"{found.title}, {dense.num_seeds} seeds; accuracy ± standard deviation, and points above `uniform` with the "
    )
    columns = ("widened", "accuracy, %", "parameters", "MACs", "above `uniform`")
    return f"{head}same seed\n± standard error:\n\n{table(columns, rows)}"


def epoch_tables() -> str:
    """Return a table for each network and share of the MACs: accuracy by method and epochs, and the epochs saved."""
    path = RESULTS / "epochs_saved.json"
    rows = record(path)["rows"] if path.exists() else []
    dense = record(path)["dense"] if path.exists() else {}
    cells = sorted({(row["network"], row["share"]) for row in rows}, key=lambda cell: (cell[0], -cell[1]))
    parts = [_epochs(rows, *cell, dense[cell[0]]) for cell in cells]
    return "\n\n".join(parts) or "Nothing is measured yet."


def _epochs(rows: list[dict[str, Any]], network: str, share: float, dense: float) -> str:
    own = [row for row in rows if (row["network"], row["share"]) == (network, share)]
    lengths = sorted({row["epochs"] for row in own})
    lines = []
    for method in dict.fromkeys(row["method"] for row in own):
        cells = [_at_best_rate([r for r in own if (r["method"], r["epochs"]) == (method, e)]) for e in lengths]
        kept = mean([row["params"] for row in cells[0]])
        shown = [spread([row["test"] for row in cell]) if cell else "–" for cell in cells]
        lines.append([f"`{method}`", *shown, f"{kept:.0%}"])
    title = f"### {network.replace('resnet', 'ResNet-')}, {share:.0%} of the MACs: {dense:.1f} % before pruning"
    columns = ["epochs", *(f"{length:g}" for length in lengths), "parameters kept"]
    return f"{title}\n\n{table(columns, lines)}"


def _at_best_rate(cell: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows at the learning rate that does best on the validation images of the first draw."""
    first = [row for row in cell if row["draw"] == 0]
    best = max(first, key=lambda row: row["validation"])["lr"] if first else None
    return [row for row in cell if row["lr"] == best]
