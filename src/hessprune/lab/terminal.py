"""What the command line shows: progress bars, tables, and errors in one line."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hessprune.errors import HessPruneError
from hessprune.foundation.bars import bars
from hessprune.lab.named import NamedResult
from hessprune.lab.options import volume
from hessprune.lab.report.comparison import Comparison, best_in_column, stage_title
from hessprune.lab.report.expansion import Expansion, verdict
from hessprune.lab.report.formats import format_count
from hessprune.lab.report.headline import headline, zones
from hessprune.lab.report.html import cells, columns, last_baselines, spoken
from hessprune.lab.report.inspection import Inspection
from hessprune.lab.report.kept_epochs import kept_whole
from hessprune.lab.report.run_report import ModelResult, RunReport
from hessprune.lab.report.saliencies import Saliencies, sparkline
from hessprune.lab.stage_names import spoken_stage


@contextmanager
def session(resumable: bool = False, brief: bool = False) -> Iterator[None]:
    """Draw progress; turn errors of the library into one line and exit code 2, an interrupt into advice.

    Args:
        resumable: Whether the same command continues after an interrupt.
        brief: Whether it is over in seconds: then no garbage is collected, which saves a tenth of them.

    Raises:
        SystemExit: In place of the errors above.
    """
    collecting = gc.isenabled()
    try:
        if brief:
            gc.disable()
        with bars(volume(), spoken=spoken_stage):
            yield
    except HessPruneError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        advice = ": nothing is lost, the same command continues" if resumable else ""
        sys.stderr.write(f"interrupted{advice}\n")
        raise SystemExit(130) from error
    finally:
        if collecting:
            gc.enable()


def print_report(report: RunReport, out: object) -> None:
    """Print the headline, the table of models and where the results are."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for column in columns(report):
        table.add_column(column, justify="right")
    for name, result in report.models.items():
        _add_model(table, report, name, result, style="bold" if result is report.final else None)
    for name, result, _ in last_baselines(report):
        _add_model(table, report, name, result, style="dim")
    console = _console()
    console.print(f"\n[bold]{headline(report)}[/]\n")
    console.print(table)
    console.print(zones(report), end="")
    for sentence in kept_whole(report):
        console.print(f"[dim]{sentence}[/]", soft_wrap=True)
    console.print(f"\nresults in {out}: report.html, report.json, model/" + _onnx(report), soft_wrap=True)


def print_named(found: NamedResult) -> None:
    """Print the plan, the accuracy and how to read the model back."""
    console = _console()
    for line in str(found.result).splitlines():
        console.print(escape(line), soft_wrap=True)
    if found.accuracy is not None:
        before, after, number = found.accuracy
        console.print(f"accuracy on {number:,} validation samples: {before:.1%} → {after:.1%}, not fine-tuned")
    console.print(f"saved in {found.folder}: model.safetensors, plan.json", soft_wrap=True)
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
    console.print(f"\n{escape(found.load)}", soft_wrap=True)


def print_inspection(inspection: Inspection) -> None:
    """Print the groups of a model, what one unit of each costs, and what is frozen and why."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("group, emitted by", overflow="fold")
    for name in ("units", "MACs/unit", "params/unit"):
        table.add_column(name, justify="right")
    table.add_column("read by", overflow="fold")
    kinds = inspection.by_kind()
    for kind, rows in kinds.items():
        if len(kinds) > 1:
            table.add_row(f"[bold]{kind}[/]", str(sum(row.units for row in rows)))
        for row in rows:
            numbers = str(row.units), format_count(row.macs), format_count(row.params)
            readers = _and_more(row.consumers[0], row.consumers) if row.consumers else "nothing"
            table.add_row(_and_more(row.name, row.producers), *numbers, readers)
    console = _console()
    size = f"{len(inspection.groups)} groups, {inspection.units} units"
    console.print(f"[bold]{inspection.model}[/] on {inspection.inputs}: {inspection.cost}\n{size}\n", soft_wrap=True)
    console.print(table)
    if inspection.frozen:
        console.print()
    for reason, axes in inspection.frozen.items():
        shown = ", ".join(axes[:6]) + (f" and {len(axes) - 6} more" if len(axes) > 6 else "")
        console.print(f"[dim]frozen because {escape(reason)}:[/] {shown}", soft_wrap=True)


def print_comparison(comparison: Comparison, out: object) -> None:
    """Print one table for each way to recover: a row for each method, a column for each budget."""
    console = _console()
    console.print(f"\n[bold]{comparison.title}[/]: {comparison.dense['accuracy']:.1%} before pruning", soft_wrap=True)
    for stage in comparison.stages:
        rows = comparison.rows(*stage)
        best = set(best_in_column(rows))
        table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
        table.add_column(f"{comparison.quantity} kept")
        for budget in comparison.budgets:
            table.add_column(f"{budget:.0%}", justify="right")
        for method in comparison.methods:
            keys = [(method, budget) for budget in comparison.budgets]
            shown = [f"[bold]{rows[k]}[/]" if k in best else str(rows[k]) if k in rows else "–" for k in keys]
            table.add_row(method, *shown)
        console.print(f"\n{stage_title(*stage)}")
        console.print(table)
    for note in (*comparison.notes, *(f"Missing: {reason}" for reason in comparison.unreachable)):
        console.print(f"[dim]{note}[/]", soft_wrap=True)
    console.print(f"\nresults in {out}: comparison.html, comparison.png, comparison.json", soft_wrap=True)


def print_expansion(found: Expansion, out: object) -> None:
    """Print one row for each way to widen, and what the bottlenecks brought."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for name in ("", "accuracy", "over uniform", "parameters", "MACs"):
        table.add_column(name, justify="right" if name else "left")
    for row in found.rows:
        gain, error = found.gains.get(row.name, (None, None))
        points = "" if gain is None else f"{gain:+.1f}" + ("" if error is None else f" ± {error:.1f}")
        table.add_row(row.name, str(row), points, format_count(row.params), format_count(row.macs))
    console = _console()
    console.print(f"\n[bold]{found.title}[/]: {verdict(found)}\n", soft_wrap=True)
    console.print(table)
    for note in found.notes:
        console.print(f"[dim]{note}[/]", soft_wrap=True)
    console.print(f"\nresults in {out}: expansion.html, expansion.json, bottlenecks.json", soft_wrap=True)


def print_saliencies(found: Saliencies, top: int, out: object) -> None:
    """Print the least and the most salient units of every group, and how all of them are spread."""
    console = _console()
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for name, justify in (("group", "left"), ("units", "right"), ("least salient", "left"), ("most salient", "left")):
        table.add_column(name, justify=justify, no_wrap=name == "group")  # type: ignore[arg-type]
    table.add_column("spread", no_wrap=True)
    for group in found.groups:
        ends = [" ".join(f"{unit}:{value:.2g}" for unit, value in end) for end in (group.least(top), group.most(top))]
        table.add_row(group.group, str(len(group.values)), *ends, sparkline(found.histogram(group.values)))
    console.print(f"[bold]{found.model}[/]: saliency by {found.method}, as unit:value\n")
    console.print(table)
    spread = f"spread: units from {found.edges[0]:.1e} to {found.edges[-1]:.1e}, logarithmic."
    console.print(f"\n[dim]{spread} {' '.join(found.notes)}[/]", soft_wrap=True)
    console.print(f"\nresults in {out}: saliency.json", soft_wrap=True)


def _add_model(table: Table, report: RunReport, name: str, result: ModelResult, style: str | None) -> None:
    numbers = [value for value, _ in cells(report, result)]
    table.add_row(spoken(name), *numbers, style=style)


def _onnx(report: RunReport) -> str:
    """Name the exported files."""
    asked = (report.settings.get("export", {}).get("onnx"), report.settings.get("quantize"))
    return "".join(f", {name}" for name, wanted in zip(("model.onnx", "int8.onnx"), asked, strict=True) if wanted)


def _and_more(name: str, names: tuple[str, ...]) -> str:
    """Name one layer, and count the others."""
    return f"{name} [dim]+ {len(names) - 1}[/]" if len(names) > 1 else name


def _console() -> Console:
    """Return a console that breaks lines for a reader, but not for a file or a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console
