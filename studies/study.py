"""Published experiments again: each cell of a study is a run of the library, and one table sets the paper beside it.

python studies/study.py hap --scale cpu --data-root DATA
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hessprune.errors import HessPruneError, RecipeError
from hessprune.foundation.bars import show_progress
from hessprune.foundation.files import write_json, write_text
from hessprune.foundation.formatting import shown
from hessprune.lab.expanding import ExpandSettings, expand
from hessprune.lab.recipe import parse_recipe
from hessprune.lab.run import run

FOLDER = Path(__file__).parent
SCALES = ("smoke", "cpu", "full")
STAGES = ("dense", "pruned", "finetuned", "int8")

Tree = Mapping[str, Any]
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One experiment: a choice on each axis, the recipe that follows, and what the paper says."""

    name: str
    settings: Tree
    published: Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A file of this folder.

    Attributes:
        title: The paper, and what is repeated of it.
        settings: Sections of a recipe that all cells share.
        axes: By axis and choice, what the choice sets.
        cases: What combinations of choices set, and what the paper has there: `match`, `settings`, `published`.
        scales: By scale what it sets (`settings`), its choices on an axis (`axes`), and those that it leaves out.
        widen: The arguments of `hessprune bottlenecks`, where cells widen networks; else they prune them.
    """

    title: str
    settings: Tree
    axes: Mapping[str, Mapping[str, Tree]]
    scales: Mapping[str, Tree]
    cases: Sequence[Tree] = ()
    widen: Tree | None = None

    @classmethod
    def read(cls, name: str) -> "Study":
        """Read a study by name.

        Raises:
            RecipeError: There is none of that name.
        """
        known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
        if name not in known:  # a path to another file is no study
            raise RecipeError(f"study must be one of {', '.join(known)}, got {shown(name)}. Write one of these names.")
        return cls(**yaml.safe_load(known[name].read_text(encoding="utf-8")))

    def cells(self, scale: str) -> Iterator[Cell]:
        """Yield the cells of one scale: every combination of choices."""
        given = self.scales[scale]
        axes = {axis: given.get("axes", {}).get(axis, choices) for axis, choices in self.axes.items()}
        axes = {
            axis: {name: settings for name, settings in choices.items() if name not in given.get("without", ())}
            for axis, choices in axes.items()
        }
        for chosen in itertools.product(*axes.values()):
            choices = dict(zip(axes, chosen, strict=True))
            cases = [case for case in self.cases if case["match"].items() <= choices.items()]
            settings = merged(
                self.settings,
                *(axes[axis][name] or {} for axis, name in choices.items()),
                *(case.get("settings", {}) for case in cases),
                given.get("settings", {}),
            )
            published = merged(*(case.get("published", {}) for case in cases))
            yield Cell(name=", ".join(chosen), settings=settings, published=published)


def merged(*trees: Tree) -> dict[str, Any]:
    """Merge nested settings; later ones win."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def pruned(cell: Cell, out: Path, data_root: Path) -> list[Row]:
    """Run a cell and return its row: test accuracies by stage, and what is left."""
    report = run(parse_recipe(cell.settings), out, data_root=data_root)
    dense, final = report.models["dense"], report.final
    row = {"cell": cell.name}
    row |= {stage: f"{100 * report.models[stage].accuracy:.1f}" for stage in STAGES if stage in report.models}
    row |= {
        "± (95 %)": f"{100 * final.accuracy_error:.1f}",
        "parameters": f"{100 * report.models['finetuned'].params / dense.params:.0f} %",
        "MACs": f"{100 * report.models['finetuned'].macs / dense.macs:.0f} %",
    }
    return [row | {f"paper: {key}": str(value) for key, value in cell.published.items()}]


def widened(cell: Cell, out: Path, data_root: Path, widen: Tree) -> list[Row]:
    """Widen the network of a cell and return a row for each way to do so: mean and spread over the seeds."""
    asked = {key: tuple(value) if isinstance(value, list) else value for key, value in widen.items()}
    found = expand(parse_recipe(cell.settings), out, expansion=ExpandSettings(**asked), data_root=data_root)
    dense = found.rows[0]
    return [
        {
            "cell": f"{cell.name}, {row.name}",
            "accuracy": str(row),
            "seeds": str(row.num_seeds),
            "parameters": f"{100 * row.params / dense.params:.0f} %",
            "MACs": f"{100 * row.macs / dense.macs:.0f} %",
        }
        | {f"paper: {key}": str(value) for key, value in cell.published.items()}
        for row in found.rows
    ]


def table(title: str, rows: Sequence[Row]) -> str:
    """Return the rows as Markdown; a dash stands where a row has no such value."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([row.get(key, "–") for key in columns] for row in rows)]
    return "\n".join([f"# {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def carry_out(name: str, scale: str, out: Path, data_root: Path, most: int | None = None) -> str:
    """Run the cells of a study, or the first few; write and return the table after each one.

    Called again after a kill, it continues with the stage that it was at.

    Raises:
        RecipeError: There is no such study, or no cell is asked for.
    """
    study = Study.read(name)
    if most is not None and most < 1:
        raise RecipeError(f"`--cells` must be at least 1, got {most}. Leave it out for all cells.")
    rows: list[Row] = []
    for cell in itertools.islice(study.cells(scale), most):
        folder = out / cell.name.lower().replace(", ", "_").replace(" ", "-")
        if study.widen is None:
            rows += pruned(cell, folder, data_root)
        else:
            asked = merged(study.widen, study.scales[scale].get("widen", {}))
            rows += widened(cell, folder, data_root, asked)
        write_json(out / "study.json", {"title": study.title, "scale": scale, "rows": rows})
        write_text(out / "table.md", table(f"{study.title} ({scale})", rows))
    return table(f"{study.title} ({scale})", rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, carry the study out, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--data-root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, help="the folder of the results; out/studies/NAME/SCALE by default")
    parser.add_argument("--cells", type=int, help="only the first ones")
    asked = parser.parse_args(arguments)
    out = asked.out or Path("out/studies") / asked.name / asked.scale
    try:
        with show_progress():
            print(carry_out(asked.name, asked.scale, out, asked.data_root, asked.cells))
    except HessPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
