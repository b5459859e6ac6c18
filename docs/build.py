"""Build what README and docs show but nobody should write by hand: tables, the demo's numbers and picture, notebooks.

Run: python docs/build.py [--check]
     python docs/build.py --record out/demo --command "hessprune demo"
     python docs/build.py --comparisons out/oneshot
"""

import argparse
import dataclasses
import inspect
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import typing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import hessprune as hp
import notebook  # beside this file
from hessprune.costs.budget import Budget
from hessprune.costs.target import LatencyTarget
from hessprune.lab.report.comparison import Comparison, best_in_column, stage_title
from hessprune.lab.settings import (
    DataSettings,
    ExportSettings,
    ModelSettings,
    PruneSettings,
    QuantizeSettings,
    ReportSettings,
    RunSettings,
)
from hessprune.planning.implants import Implant
from hessprune.planning.ranking import Ranking
from hessprune.training.config import FinetuneConfig

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SECTIONS = {
    "": RunSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "prune": PruneSettings,
    "prune.budget": Budget,
    "prune.ranking": Ranking,
    "prune.implant": Implant,
    "prune.latency": LatencyTarget,
    "finetune": FinetuneConfig,
    "quantize": QuantizeSettings,
    "export": ExportSettings,
    "report": ReportSettings,
}
FRONT = ("demo", "ehap-vgg16", "sst2-minilm")
"""Records that the front page shows."""
KEPT = ("accuracy", "perplexity", "loss", "macs", "params", "size_bytes", "latency_ms")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def recipe_tables() -> str:
    """Return one table for each section of a recipe: key, default, meaning."""
    return "\n\n".join(_table(path, section) for path, section in SECTIONS.items())


def reference_rows() -> str:
    """Return a table for each stage of the public names: name, and the first line of its docstring."""
    parts, stub = [], ROOT / "src" / "hessprune" / "__init__.pyi"
    for block in stub.read_text("utf-8").split("\n\n")[1:]:
        names = re.findall(r"(?:import |, )(\w+) as", block)
        title = block.split("\n")[0].removeprefix("# ").partition(":")[0]
        rows = [f"| `hp.{name}` | {_first_line(name)} |" for name in names]
        parts.append(
            "\n".join([f"### {title[0].upper()}{title[1:]}", "", "| name | |", "|---|---|", *rows]) if rows else ""
        )
    return "\n\n".join(filter(None, parts))


def _first_line(name: str) -> str:
    value = getattr(hp, name)
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split()).replace("|", "\\|")


def demo_rows() -> str:
    """Return the demo's results as a table, from the numbers that are committed."""
    models = _record(DOCS / "results" / "demo.json")["models"]
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
        record = _record(DOCS / "results" / f"{name}.json")
        models = record["models"]
        dense, final = models["dense"], models.get("int8", models["finetuned"])
        times = [model.get("latency_ms") for model in (dense, final)]
        shown = f"{times[0]:.3g} → {times[1]:.3g}" if all(times) else "not timed"
        what = (
            f"{record['title']}, {final['macs'] / dense['macs']:.0%} of the MACs{', INT8' if 'int8' in models else ''}"
        )
        command = record["command"].partition(" --set")[0]
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
        record = _record(path)
        dense, final = record["models"]["dense"], record["models"]["finetuned"]
        what = f"{record['title']}, {final['macs'] / dense['macs']:.0%} of the MACs"
        result = f"{_judged(dense, final)}{_in_integers(record['models'])}"
        lines.append(f"| {what} | {result} | `{record['command']}` |")
    for kind in ("oneshot", "finetuned"):
        lines += [_headline(path) for path in sorted((DOCS / "results" / kind).glob("*.json"))]
    for path, content in _benchmarks():
        lines.append(f"| {_claim(path)} | {_tally(content['claims'])} | `{_command(path)}` |")
    return "\n".join(lines)


def _tally(claims: list[dict[str, Any]]) -> str:
    """Say how many claims hold, and how many could not be tried."""
    held, untried = (sum(claim["holds"] is verdict for claim in claims) for verdict in (True, None))
    tally = f"{held} of {len(claims) - untried} figures on target"
    return f"{tally}, {untried} not measured" if untried else tally


def benchmark_tables() -> str:
    """Return every claim of every committed benchmark."""
    tables = []
    for path, content in _benchmarks():
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


def comparison_tables(kind: str) -> str:
    """Return picture and tables of every committed comparison of one kind."""
    parts = [_comparison(path) for path in sorted((DOCS / "results" / kind).glob("*.json"))]
    return "\n\n".join(parts) or "None is committed yet."


CHOICES = (
    ("ResNet-56, cut and left", "oneshot/resnet56-all", (0, False)),
    ("ResNet-56, refitted", "oneshot/resnet56-all", (0, True)),
    ("ResNet-20, refitted", "oneshot/resnet20-all", (0, True)),
    ("ResNet-20, cut, two epochs", "finetuned/resnet20-plain", (2, False)),
)
"""Columns of the table of methods: title, comparison, epochs of training and whether the survivors were refitted."""


def choice_rows() -> str:
    """Return a table of all methods at half of the MACs: without the refit, with it, and after training."""
    found = {name: Comparison.load(DOCS / "results" / f"{name}.json") for _, name, _ in CHOICES}
    columns = [{m: row for (m, share), row in found[n].rows(*way).items() if share == 0.5} for _, n, way in CHOICES]
    lines = [f"| method | {' | '.join(title for title, _, _ in CHOICES)} |", "|---" * (len(CHOICES) + 1) + "|"]
    dense = (f"{100 * found[name].dense['accuracy']:.1f}" for _, name, _ in CHOICES)
    lines.append(f"| dense | {' | '.join(dense)} |")
    for method in ("random", "magnitude", "bn_scale", "taylor", "hap", "sosp-h", "sosp-i", "joint"):
        lines.append(f"| `{method}` | {' | '.join(str(column.get(method, '–')) for column in columns)} |")
    return "\n".join(lines)


ENCODERS = {
    "both": ("Heads and neurons", "MACs"),
    "heads": ("Heads alone", "heads"),
    "neurons": ("Neurons alone", "neurons"),
    "both, one epoch": ("Heads and neurons, then an epoch of training", "MACs"),
}
"""Titles of the studies of encoders, and what is removed."""


def encoder_tables() -> str:
    """Return the tables of the study of sentences."""
    return _tables_of_study(_record(ROOT / "benchmarks" / "results" / "encoders.json"), "sentences")


def picture_tables() -> str:
    """Return the tables of the study of images, and the milliseconds of one image."""
    content = _record(ROOT / "benchmarks" / "results" / "encoders_vit.json")
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
        best = {max((key for key in found if key[1] == share), key=lambda k: _mean(found[k])) for share in shares}
        lines = [f"### {title}", "", f"{removed} removed:", "", f"| | {' | '.join(f'{1 - s:.0%}' for s in shares)} |"]
        lines.append("|---" * (len(shares) + 1) + "|")
        for method in dict.fromkeys(method for method, _ in found):
            keys = [(method, share) for share in shares]
            shown = [_spread(found[k]) if k in found else "–" for k in keys]
            shown = [f"**{text}**" if k in best else text for k, text in zip(keys, shown, strict=True)]
            lines.append(f"| `{method}` | {' | '.join(shown)} |")
        parts.append("\n".join(lines))
    draws = 1 + max(row["draw"] for row in content["rows"])
    head = f"Dense: {100 * content['dense'][0]:.1f} %. Draws of calibration {noun}: {draws}."
    return "\n\n".join([head, *parts])


def decoder_tables() -> str:
    """Return the tables of perplexity of decoders, and what is open."""
    content = _record(ROOT / "benchmarks" / "results" / "decoders.json")
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
    best = {min(keys, key=lambda k: _mean(found[k])) for keys in columns if len(keys) > 1}
    lines = [f"| | {' | '.join(f'{share:.0%}' for share in shares)} |", "|---" * (len(shares) + 1) + "|"]
    methods = {method for method, _ in found}
    for method in DECODERS if len(shares) > 1 else filter(methods.__contains__, DECODERS):
        shown = [_spread(found[method, share]) if (method, share) in found else "–" for share in shares]
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


DECODERS = (
    "joint, compensated", "flap", "osscar", "wanda-sp", "llm-pruner", "minitron", "magnitude", "random",
)  # fmt: skip
"""Methods of the study of decoders."""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float]) -> str:
    """Return `84.1 ± 0.6`; of a single draw the value alone."""
    if _mean(values) >= 1000:
        return f"{_mean(values):,.0f}".replace(",", " ")
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{_mean(values):.1f}{spread}"


BUILT = {
    ("decoders.md", "tables"): decoder_tables,
    ("choosing-a-method.md", "choosing"): choice_rows,
    ("encoders.md", "tables"): encoder_tables,
    ("encoders.md", "pictures"): picture_tables,
    ("oneshot.md", "oneshot"): partial(comparison_tables, "oneshot"),
    ("oneshot.md", "finetuned"): partial(comparison_tables, "finetuned"),
    ("recipes.md", "keys"): recipe_tables,
    ("benchmarks.md", "claims"): benchmark_tables,
    ("reference.md", "names"): reference_rows,
    ("benchmarks.md", "summary"): summary_rows,
    ("benchmarks.md", "demo"): demo_rows,
    ("../README.md", "results"): result_rows,
}
VARIANTS = {
    "inner": "inner channels",
    "all": "all channels",
    "plain": "all channels, as published",
    "compensated": "all channels",
}
"""What the second part of a comparison's name says."""


def filled(text: str, marker: str, body: str) -> str:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->`."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(\n<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"no place for {marker!r}")
    return pattern.sub(lambda match: match[1] + body + match[2], text)


def stale(*, write: bool) -> list[str]:
    """Return the pages whose built parts are out of date, and bring them up to date if asked."""
    found = []

    def compare(path: Path, new: str) -> None:
        if not path.is_file() or path.read_text("utf-8") != new:
            found.append(path.resolve().relative_to(ROOT).as_posix())
            if write:
                path.parent.mkdir(exist_ok=True)
                path.write_text(new, "utf-8")

    for (page, marker), build in BUILT.items():
        compare(DOCS / page, filled((DOCS / page).read_text("utf-8"), marker, build()))
    for guide in notebook.GUIDES:
        compare(notebook.path_of(guide), notebook.notebook(guide))
    return found


def keep(folder: Path, command: str) -> None:
    """Keep the numbers of a finished run, with what they depend on; of the demo also a picture of its report."""
    report = json.loads((folder / "report.json").read_text("utf-8"))
    models = {name: report[name] for name in ("dense", "pruned", "finetuned", "int8") if name in report} | report[
        "baselines"
    ]
    record = {
        "title": report["title"],
        "command": command,
        "models": {name: {key: result[key] for key in KEPT if key in result} for name, result in models.items()},
        "environment": {key: report["environment"][key] for key in ("cpu", "cpu_cores", "threads")},
        **{key: report[key] for key in ("seeds", "data_fingerprint", "versions")},
    }
    (DOCS / "results" / f"{folder.name}.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    if folder.name == "demo":
        take_picture(folder / "report.html", DOCS / "images" / "report.png")
        take_picture(folder / "report.html", DOCS / "images" / "report-phone.png", phone=True)


def keep_comparisons(folder: Path) -> None:
    """Keep numbers and picture of every comparison below a folder, under the names of both."""
    kept = DOCS / "results" / folder.name
    kept.mkdir(exist_ok=True)
    for path in sorted(folder.glob("*/comparison.json")):
        name = path.parent.name
        shutil.copyfile(path, kept / f"{name}.json")
        if len(Comparison.load(path).budgets) > 1:  # a picture of single points says less than the table
            shutil.copyfile(path.with_suffix(".png"), DOCS / "images" / f"{folder.name}-{name}.png")


PHONE = 390
"""Pixels across a telephone."""


def take_picture(page: Path, picture: Path, *, phone: bool = False) -> None:
    """Save the first screen of a page, 1280 × 1000, or two columns of what a telephone shows, 390 × 1000 each."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed: the picture stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        address, size = page.resolve().as_uri(), "1280,1000"
        if phone:  # no window is as narrow as a telephone; a frame is
            frame = f'<body style="margin:0"><iframe src="{address}" style="border:0;width:{PHONE}px;height:2000px">'
            Path(folder, "frame.html").write_text(frame, "utf-8")
            address, size = Path(folder, "frame.html").as_uri(), "800,2000"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
        options += [f"--user-data-dir={folder}/profile", f"--window-size={size}", f"--screenshot={picture}"]
        subprocess.run([browser, *options, address], check=True, capture_output=True, timeout=120)
    image = Image.open(picture).convert("RGB")
    if phone:
        both = Image.new("RGB", (2 * PHONE + 20, 1000), "white")
        for column in range(2):
            both.paste(image.crop((0, 1000 * column, PHONE, 1000 * (column + 1))), (column * (PHONE + 20), 0))
        image = both
    image.quantize(256).save(picture, optimize=True)  # a third of the size


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


def _headline(path: Path) -> str:
    """Return the row of a comparison: at half the budget, the three best methods and `random`."""
    found = Comparison.load(path)
    rows = {m: row for (m, budget), row in found.rows(*found.stages[-1]).items() if budget == 0.5}
    best = sorted(rows, key=lambda method: -rows[method].accuracy)
    best = [*best[:3], *(["random"] if "random" in best[3:] else [])]
    shown = ", ".join(f"`{method}` {rows[method]}" for method in best)
    what = f"{_title(path)}, half of the {_quantity(found)}, {stage_title(*found.stages[-1])}"
    accuracies = f"{100 * found.dense['accuracy']:.1f} → {shown} %"
    return f"| {what} | accuracy {accuracies} | `make reproduce-{path.parent.name}` |"


def _title(path: Path) -> str:
    """Say what was compared, from the comparison's name."""
    network, what = path.stem.split("-")
    return f"{network.replace('resnet', 'ResNet-')}, {VARIANTS[what]}"


def _quantity(found: Comparison) -> str:
    return {"units": "channels", "macs": "MACs", "params": "parameters"}[found.quantity]


def _comparison(path: Path) -> str:
    """Return one comparison: what it is, its picture, and a table for each way to recover."""
    found, kind, name = Comparison.load(path), path.parent.name, path.stem
    quantity = _quantity(found)
    head = f"### {_title(path)}: {found.dense['accuracy']:.1%} before pruning"
    lines = [head, "", *found.notes]
    if len(found.budgets) > 1:
        lines += ["", f"![{name}](images/{kind}-{name}.png)"]
    for stage in found.stages:
        rows = found.rows(*stage)
        best = set(best_in_column(rows))
        columns = [f"{budget:.0%}" for budget in found.budgets]
        lines += ["", f"{stage_title(*stage).capitalize()}; {quantity} kept:", ""]
        lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for method in found.methods:
            keys = [(method, budget) for budget in found.budgets]
            shown = [f"**{rows[k]}**" if k in best else str(rows[k]) if k in rows else "–" for k in keys]
            lines.append(f"| `{method}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def _record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _benchmarks() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield what every benchmark that states claims has written."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict) and "claims" in content:
            yield path, content


def _claim(path: Path) -> str:
    """Return the claim with which a benchmark's script opens."""
    text = (ROOT / "benchmarks" / f"{path.stem}.py").read_text("utf-8")
    claim = re.sub(r'^"""(?:Claims?: )?', "", text).split("\n\n")[0]
    return (claim[0].upper() + claim[1:]).replace("\n", " ").rstrip(".")


def _command(path: Path) -> str:
    own = _record(path).get("arguments", "")
    return f"python benchmarks/{path.stem}.py {own} --out benchmarks/results/{path.name}".replace("  ", " ")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(path: str, section: type) -> str:
    title = f"### `{path}`" if path else "### Top level"
    rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in _keys(path, section)]
    return "\n".join([title, "", "| key | default | meaning |", "|---|---|---|", *rows])


def _keys(path: str, section: type) -> Iterator[tuple[str, str, str]]:
    meanings, hints = _meanings(section), typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        inner = f"{path}.{item.name}".strip(".")
        yield item.name, _default(item, inner), meanings[item.name] + _choices(hints[item.name], meanings[item.name])


def _meanings(section: type) -> dict[str, str]:
    """Read the fields' meanings from the class's docstring."""
    text = inspect.getdoc(section) or ""
    block = re.search(r"(?:Attributes|Args):\n((?:    .*\n?|\n)+)", text)
    entries = re.findall(r"^    (\w+): ((?:.+)(?:\n {8,}.+)*)", block[1] if block else "", re.MULTILINE)
    return {name: " ".join(meaning.split()).replace("|", "\\|") for name, meaning in entries}


def _default(item: "dataclasses.Field[Any]", path: str) -> str:
    if path in SECTIONS:
        return "required" if _required(item) else f"see `{path}`"
    if item.default is dataclasses.MISSING and not _required(item):
        return "other defaults"
    return "required" if _required(item) else f"`{_yaml(item.default)}`"


def _required(item: "dataclasses.Field[Any]") -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _choices(hint: Any, meaning: str) -> str:
    """Name the choices of a `Literal` that the meaning does not name."""
    options = [hint, *typing.get_args(hint)]
    literal = next((option for option in options if typing.get_origin(option) is typing.Literal), None)
    choices = ["true", "false"] if bool in options else []
    choices += typing.get_args(literal) if literal is not None else []
    if literal is None or all(f'"{choice}"' in meaning for choice in choices):
        return ""
    return f" One of {', '.join(f'`{choice}`' for choice in choices)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is out of date")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="take the numbers of this finished run")
    parser.add_argument("--command", default="hessprune demo", help="what made that run")
    parser.add_argument("--comparisons", type=Path, metavar="FOLDER", help="take the comparisons below this folder")
    arguments = parser.parse_args()
    if arguments.record:
        keep(arguments.record, arguments.command)
    if arguments.comparisons:
        keep_comparisons(arguments.comparisons)
    pages = stale(write=not arguments.check)
    print(f"{'out of date' if arguments.check else 'rewritten'}: {', '.join(dict.fromkeys(pages)) or 'nothing'}")
    sys.exit(1 if arguments.check and pages else 0)


if __name__ == "__main__":
    main()
