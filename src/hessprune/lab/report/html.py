"""One self-contained page: no script, no request, readable in light and dark."""

from collections.abc import Callable, Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from hessprune.foundation.files import write_text
from hessprune.lab.report.formats import format_bytes, format_count, format_latency
from hessprune.lab.report.kept_epochs import kept_whole
from hessprune.lab.report.layer_cards import files_card, layer_card
from hessprune.lab.report.run_report import ModelResult, RunReport, headline
from hessprune.lab.report.scores import described, score_of

COLUMNS = ("Loss", "MACs", "Parameters", "Size", "Latency")
FASTER = 1.05
"""Times as fast below which nobody would notice."""
SMALL_MS = 0.1
_STAGE_NAMES = {"finetuned": "Pruned and fine-tuned", "int8": "INT8"}


def write_html(report: RunReport, path: Path | str) -> Path:
    """Write the report as one HTML file, in one step."""
    return write_text(path, render(report))


def render(report: RunReport) -> str:
    """Return the report as an HTML document, a function of `report` alone."""
    template = Template(files("hessprune.lab.report").joinpath("page.html").read_text("utf-8"))
    version = report.versions.get("hessprune", "")
    return template.substitute(
        title=escape(headline(report)),
        headline=escape(headline(report)),
        lead=escape(_lead(report)),
        body="\n".join(section for section in _sections(report) if section),
        footer=escape(f"hessprune {version} · data {report.data_fingerprint[:12]}"),
    )


def _lead(report: RunReport) -> str:
    dense, final = report.models["dense"], report.final
    number = f"{final.num_samples:,}".replace(",", " ")
    tested = f"{number} test {_noun(report)}s of {report.data.get('name', 'the data')}"
    parts = [
        f"{_before(report)} → {described(report, final)} on {tested}",
        f"{_percent(final.params / dense.params, 0)} of the parameters kept",
    ]
    if dense.latency_ms and final.latency_ms:
        parts.append(_speed(report) + _threads(report))
    return "; ".join(parts) + "."


def _before(report: RunReport) -> str:
    """Return the dense model's score; percent say by themselves that they are accuracy."""
    text, score = described(report, report.models["dense"]), score_of(report)
    return f"{score.title} {text}" if score.lower_is_better else text


def _speed(report: RunReport) -> str:
    """Return how many times as fast the final model is, or why it is not faster."""
    dense, final = report.models["dense"].latency_ms or 0.0, report.final.latency_ms or 1.0
    if dense / final >= FASTER:
        return f"{dense / final:.1f} × as fast"
    if dense < SMALL_MS:
        why = "a network this small spends its time on calls, not on arithmetic"
    elif any(row.width[1] % 8 and row.width[1] < row.width[0] for row in report.table):
        why = "widths that are no multiples of 8 leave kernels idle: set prune.ranking.round_to to 8"
    else:
        why = "this runtime does not spend its time on the arithmetic that went: set a budget of latency_ms"
    return f"no faster here, because {why};"


def _threads(report: RunReport) -> str:
    threads = report.environment.get("latency_num_threads")
    number = report.environment.get("latency_batch_size", 1)
    batch = f", {number} {_noun(report)}s at a time" if number > 1 else ""
    return f" on {threads} CPU thread{'s' if threads != 1 else ''}{batch}" if threads else ""


def _sections(report: RunReport) -> Iterator[str]:
    yield _summary(report)
    # matplotlib, which only drawing needs
    from hessprune.lab.report import figures
    from hessprune.lab.report.style import on_both

    def drawn(figure: Callable[..., str]) -> str:
        return on_both(figure(report), figure(report, narrow=True))

    cards = _curve_card(report, drawn(figures.accuracy_against_cost)), _decision_card(report)
    alone = len({point.refitted for point in report.curve}) > 1  # two panels need the width of the page
    yield "".join(cards) if alone else f'<div class="pair">{"".join(cards)}</div>'
    yield _card("Kept width per layer", _layer_note(report), drawn(figures.network))
    yield layer_card(report)
    yield _card("Saliency of every unit", _saliency_note(report), drawn(figures.saliencies))
    kept = "The epoch that is kept is the best one on validation, never on test."
    yield _card("Training", " ".join([kept, *kept_whole(report)]), drawn(figures.training))
    yield files_card(report)
    yield _settings(report)


def _saliency_note(report: RunReport) -> str:
    small = '<i class="swatch dot" style="background:var(--green)"></i>implanted '
    return (
        '<i class="swatch dot" style="background:var(--blue)"></i>kept '
        + (small if any(any(group.implanted) for group in report.saliency) else "")
        + '<i class="swatch ring"></i>removed. A removed unit may lie right of a kept one '
        "where the ranking divides by the cost that a unit frees, or where a layer had reached its floor."
    )


def _card(title: str, note: str, content: str) -> str:
    """One titled section; `note` is HTML; nothing at all without content."""
    return f'<section><h2>{escape(title)}</h2><p class="note">{note}</p>{content}</section>' if content else ""


def _curve_card(report: RunReport, curve: str) -> str:
    note = "Pruned in one step, without training, on the validation split; the diamond is the model of this run."
    draws = len({point.draw for point in report.curve})
    if draws > 1:
        note += f" Means over {draws} draws of calibration {_noun(report)}s, bars are standard deviations."
    return _card(
        f"{score_of(report).title} against cost",
        note,
        curve or "<p class=note>Not drawn: the recipe asks for no curve.</p>",
    )


def _summary(report: RunReport) -> str:
    """The table of models: this run's, then the baselines."""
    remarks = {"pruned": "not yet trained"}
    rows = [_row(report, name, result, remarks.get(name, "")) for name, result in report.models.items()]
    rows[-1] = rows[-1].replace("<tr>", '<tr class="final">', 1)
    rows += [
        _row(report, name, result, note).replace("<tr>", '<tr class="baseline">', 1)
        for name, result, note in last_baselines(report)
    ]
    head = "".join(f"<th>{column}</th>" for column in ("", *columns(report)))
    notes = f'<p class="note">{" ".join(escape(note) for note in report.notes)}</p>' if report.notes else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><div class="scroll">{table}</div>{notes}</section>'


def last_baselines(report: RunReport) -> Iterator[tuple[str, ModelResult, str]]:
    """Yield name, result and note of every baseline; what was also fine-tuned shows its first score in the note."""
    for name, result in report.baselines.items():
        method, _, stage = name.rpartition("-")
        before = report.baselines.get(f"{method}-pruned")
        if stage == "finetuned" and before:
            yield name, result, f"{described(report, before)} before training"
        elif f"{method}-finetuned" not in report.baselines:
            yield name, result, ""


def columns(report: RunReport) -> tuple[str, ...]:
    """Return the headings of the table of models."""
    return (score_of(report).title, *COLUMNS)


def _row(report: RunReport, name: str, result: ModelResult, remark: str = "") -> str:
    body = "".join(
        f'<td><span class="n">{value}</span><small>{note or "&nbsp;"}</small></td>'
        for value, note in cells(report, result)
    )
    return f"<tr><th>{escape(spoken(name))}<small>{escape(remark)}</small></th>{body}</tr>"


def spoken(name: str) -> str:
    """Return the name of a model as a person says it.

    Example:
        >>> spoken("magnitude-finetuned")
        'Magnitude, fine-tuned'
    """
    plain = name.replace("-pruned", ", pruned").replace("-finetuned", ", fine-tuned")
    return _STAGE_NAMES.get(name, plain[:1].upper() + plain[1:])


def cells(report: RunReport, result: ModelResult) -> list[tuple[str, str]]:
    """Return one row of the table: for each of `columns` the number, and how it compares with the dense model."""
    dense, score = report.models["dense"], score_of(report)
    latency = "–" if result.latency_ms is None else format_latency(result.latency_ms)
    row = [
        (score.text(score.of(result)), score.change(score.of(result), score.of(dense))),
        (f"{result.loss:.3f}", f"{result.loss - dense.loss:+.3f}".replace("-", "−")),
        (format_count(result.macs), _percent(result.macs / dense.macs)),
        (format_count(result.params), _percent(result.params / dense.params)),
        (format_bytes(result.size_bytes), _percent(result.size_bytes / dense.size_bytes)),
        (latency, _latency_note(result, dense)),
    ]
    if result is not dense:
        return row
    known = result.num_samples and not score.lower_is_better
    error = f"± {100 * result.accuracy_error:.1f}" if known else ""
    return [(value, note) for (value, _), note in zip(row, (error, "", "", "", "", row[-1][1]), strict=True)]


def _latency_note(result: ModelResult, dense: ModelResult) -> str:
    if result.latency_ms is None:
        return ""
    if result is not dense and dense.latency_ms:
        return f"{dense.latency_ms / result.latency_ms:.2f} × as fast"
    if result.latency_p10_ms is None or result.latency_p90_ms is None:
        return ""
    return f"{format_latency(result.latency_p10_ms)} – {format_latency(result.latency_p90_ms)}"


def _noun(report: RunReport) -> str:
    """Return what one sample is called."""
    return report.data.get("noun", "image")


def _decision_card(report: RunReport) -> str:
    """Which estimator, how sure, how many units: a list of facts beside the curve."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _decision(report))
    return f'<section class="facts"><h2>The decision</h2><dl>{rows}</dl></section>'


def _decision(report: RunReport) -> Iterator[tuple[str, str]]:
    estimate = report.estimate
    if estimate:
        yield "Saliency", estimate.method
        yield from (("Estimator", estimate.estimator),) if estimate.estimator else ()
        yield from (("Curvature", _KINDS.get(estimate.kind, estimate.kind)),) if estimate.kind else ()
        yield "Standard error", _certainty(estimate.relative_error)
        yield from (("Backward passes", str(estimate.num_backwards)),) if estimate.num_backwards else ()
        yield "Calibration", f"{_grouped(estimate.num_samples)} {_noun(report)}s"
    kept = sum(sum(group.kept) for group in report.saliency)
    units = sum(len(group.kept) for group in report.saliency)
    if units:
        yield "Units removed", f"{units - kept} of {units}"
        implanted = sum(sum(group.implanted) for group in report.saliency)
        yield from (("Units implanted", f"{implanted} of {units}"),) if implanted else ()
        untouched = sum(all(group.kept) and not any(group.implanted) for group in report.saliency)
        yield "Groups untouched", f"{untouched} of {len(report.saliency)}"
    yield "MACs kept", f"{_grouped(report.final.macs)} ({_percent(report.macs_fraction, 2)})"


_KINDS = {"hessian": "true Hessian", "ggn": "Gauss–Newton (GGN)"}


def _certainty(relative_error: float | None) -> str:
    if relative_error is None:
        return "not estimated"
    return "none: exact" if relative_error == 0 else f"{_percent(relative_error)} of a typical unit"


def _layer_note(report: RunReport) -> str:
    groups = [layer.group for layer in report.layers]
    note = 'Outline: dense. <i class="swatch" style="background:var(--blue)"></i>kept'
    if len(set(groups)) < len(groups):
        note += (
            ' <i class="swatch" style="background:var(--pale)"></i>kept, in layers that share their channels '
            "and so shrink together"
        )
    if any(layer.implanted for layer in report.layers):
        note += ' <i class="swatch" style="background:var(--green)"></i>implanted: a low-rank stand-in of the filter'
    return note + "."


def _settings(report: RunReport) -> str:
    """Everything needed to repeat the run, folded away."""
    tables = {
        "Recipe": report.settings,
        "Seeds": report.seeds,
        "Data": {**report.data, "fingerprint": report.data_fingerprint},
        "Environment": report.environment,
        "Versions": report.versions,
    }
    body = "".join(f"<h3>{name}</h3>{_key_table(table)}" for name, table in tables.items() if table)
    return f"<section><details><summary>Every setting, seed and version</summary>{body}</details></section>"


def _key_table(table: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in _flat(table))
    return f"<table><tbody>{rows}</tbody></table>"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `("prune.budget.macs", 0.5)` and the like."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _grouped(count: int) -> str:
    """Return a count with thin spaces between thousands."""
    return f"{count:,}".replace(",", "\u202f")


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"
