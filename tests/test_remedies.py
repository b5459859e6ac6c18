"""Every remedy that an error names is a call that runs: one row an error, and no error without a row or a reason."""

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from hessprune.errors import HessPruneError
from tests.remedies import NO_ROW, ROWS, Row

SOURCE = Path(__file__).parents[1] / "src" / "hessprune"


@pytest.mark.parametrize("row", ROWS, ids=[f"{number}-{row.site[:50]}" for number, row in enumerate(ROWS)])
def test_remedies_run(row: Row) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(HessPruneError) as caught:
            row.provoke()
        message = str(caught.value)
        assert "\n" not in message
        if not re.match(r"\w+\(", row.site):  # else a function words the message
            pieces = [re.escape(piece) for piece in row.site.split("{}")]
            assert re.search(".*".join(pieces), message), message
        assert re.search(row.says, message), message
        row.remedy(message)


def sites() -> Iterator[tuple[str, str]]:
    """Yield module and message of every place that raises an error of the package."""
    errors = {
        node.name for node in ast.parse((SOURCE / "errors.py").read_text()).body if isinstance(node, ast.ClassDef)
    }
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = node.exc.func
                if isinstance(called, ast.Name) and called.id in errors:
                    yield module, template(node.exc.args[0])


def template(node: ast.AST) -> str:
    """Return a message with `{}` for what is filled in; the source of anything but a text."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join("{}" if isinstance(part, ast.FormattedValue) else template(part) for part in node.values)
    return ast.unparse(node)


FOUND = list(sites())


def test_every_error_has_a_row_or_a_reason() -> None:
    uncovered = [
        f"{module}: {text}"
        for module, text in FOUND
        if not any(row.site in text for row in ROWS)
        and not any(f"{module}.".startswith(f"{place}.") and re.search(piece, text) for place, piece in NO_ROW.items())
    ]
    assert not uncovered, "add a row: " + "; ".join(uncovered)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.site[:40])
def test_rows_are_those_of_errors_that_exist(row: Row) -> None:
    assert any(row.site in text for _, text in FOUND)


@pytest.mark.parametrize(("place", "piece"), NO_ROW.items(), ids=NO_ROW.keys())
def test_reasons_are_those_of_errors_that_exist(place: str, piece: str) -> None:
    for part in piece.split("|"):
        assert any(f"{module}.".startswith(f"{place}.") and re.search(part, text) for module, text in FOUND), part
