"""Two parts of the page: the table of layers, and the files beside the report with the lines that load them."""

from collections.abc import Iterator
from html import escape

from hessprune.lab.report.formats import format_count
from hessprune.lab.report.run_report import LayerRow, RunReport

OPEN = 24
"""Layers up to which the table is shown without a click."""


def layer_card(report: RunReport) -> str:
    """Return the table of layers: widths, MACs and parameters before and after, and what decided."""
    if not report.table:
        return ""
    names = "".join(f"<th>{name}</th>" for name in ("", "Channels", "MACs", "Parameters"))
    head = f'<tr>{names}<th style="text-align:left">Why</th></tr>'
    body = "".join(_row(row) for row in report.table)
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    note = (
        '<p class="note">Before → after. The typical saliency per MAC is the median over the groups: what a unit is '
        "worth for what it costs.</p>"
    )
    if len(report.table) <= OPEN:
        return f'<section class="long"><h2>Layer by layer</h2>{note}{table}</section>'
    summary = f"<summary>Layer by layer: {len(report.table)} layers</summary>"
    return f'<section class="long"><details>{summary}{note}{table}</details></section>'


def files_card(report: RunReport) -> str:
    """Return links to the files beside the report, the lines that load the model, and what each stage took."""
    parts = [f'<ul class="files">{"".join(_links(report))}</ul>']
    if report.loading:
        parts.append(f"<pre>{escape(report.loading)}</pre>")
    if report.seconds:
        times = "; ".join(f"{escape(name)} {seconds:.1f} s" for name, seconds in report.seconds.items())
        total = sum(report.seconds.values())
        parts.append(f'<p class="note">{total:.0f} s in all, of stages made once: {times}.</p>')
    if report.date:
        parts.append(f'<p class="note">{report.date}. Again: <code>{escape(command(report))}</code></p>')
    return f"<section><h2>Files</h2>{''.join(parts)}</section>" if report.loading or report.seconds else ""


def command(report: RunReport) -> str:
    """Return the command that repeats a run, from within its folder."""
    data = report.settings.get("data", {})
    root = " --data-root DATA" if isinstance(data, dict) and data.get("root") else ""
    return f"hessprune run recipe.yaml{root} --out again"


def _links(report: RunReport) -> Iterator[str]:
    settings = report.settings
    known = {
        "model/": "the pruned and fine-tuned model, for hp.load",
        "model.onnx": "the same for ONNX Runtime" if settings.get("export", {}).get("onnx") else "",
        "int8.onnx": "in integers" if settings.get("quantize") else "",
        "recipe.yaml": "every setting",
        "report.json": "every number of this page",
    }
    for name, text in known.items():
        if text:
            yield f'<li><a href="{name}">{name}</a>: {text}</li>'


def _row(row: LayerRow) -> str:
    cells = [f"{row.width[0]} → <b>{row.width[1]}</b>" if row.width[0] != row.width[1] else str(row.width[0])]
    for before, after in (row.macs, row.params):
        cells.append(
            f"{format_count(before)} → <b>{format_count(after)}</b>" if before != after else format_count(before)
        )
    body = "".join(f'<td><span style="white-space:nowrap">{cell}</span></td>' for cell in cells)
    return f'<tr><th>{escape(row.name)}</th>{body}<td class="why">{escape(row.why)}</td></tr>'
