"""Build what README and docs show but nobody should write by hand: tables, the demo's numbers and picture, notebooks.

Run: python docs/build.py [--check]
     python docs/build.py --record out/demo --command "hessprune demo"
     python docs/build.py --comparisons out/oneshot
"""

import argparse
import inspect
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

import hessprune as hp
import notebook  # beside this file
from hessprune.lab.report.comparison import Comparison
from hessprune.lab.report.expansion import Expansion
from tables.claims import benchmark_tables, demo_rows, result_rows, summary_rows
from tables.comparisons import choice_rows, comparison_tables
from tables.recipes import recipe_tables
from tables.records import DOCS, ROOT
from tables.studies import decoder_tables, encoder_tables, epoch_tables, expansion_tables, picture_tables

KEPT = ("accuracy", "perplexity", "loss", "macs", "params", "size_bytes", "latency_ms")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = 390
"""Pixels across a telephone."""


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


BUILT = {
    ("decoders.md", "tables"): decoder_tables,
    ("choosing-a-method.md", "choosing"): choice_rows,
    ("bottlenecks.md", "expansions"): expansion_tables,
    ("encoders.md", "tables"): encoder_tables,
    ("encoders.md", "pictures"): picture_tables,
    ("oneshot.md", "oneshot"): partial(comparison_tables, "oneshot"),
    ("oneshot.md", "finetuned"): partial(comparison_tables, "finetuned"),
    ("oneshot.md", "epochs"): epoch_tables,
    ("recipes.md", "keys"): recipe_tables,
    ("benchmarks.md", "claims"): benchmark_tables,
    ("reference.md", "names"): reference_rows,
    ("benchmarks.md", "summary"): summary_rows,
    ("benchmarks.md", "demo"): demo_rows,
    ("../README.md", "results"): result_rows,
}


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


def keep_expansions(folder: Path) -> None:
    """Keep the numbers of every network below a folder that was widened, without the facts of each fold."""
    kept = DOCS / "results" / "expansion"
    kept.mkdir(exist_ok=True)
    for path in sorted(folder.glob("*/expansion.json")):
        replace(Expansion.load(path), bottlenecks={}).save(kept / f"{path.parent.name}.json")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is out of date")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="take the numbers of this finished run")
    parser.add_argument("--command", default="hessprune demo", help="what made that run")
    parser.add_argument("--comparisons", type=Path, metavar="FOLDER", help="take the comparisons below this folder")
    parser.add_argument("--expansions", type=Path, metavar="FOLDER", help="take the widened networks below it")
    arguments = parser.parse_args()
    if arguments.record:
        keep(arguments.record, arguments.command)
    if arguments.comparisons:
        keep_comparisons(arguments.comparisons)
    if arguments.expansions:
        keep_expansions(arguments.expansions)
    pages = stale(write=not arguments.check)
    print(f"{'out of date' if arguments.check else 'rewritten'}: {', '.join(dict.fromkeys(pages)) or 'nothing'}")
    sys.exit(1 if arguments.check and pages else 0)


if __name__ == "__main__":
    main()
