import jinja2
import pytest

from hessprune.lab.report.pages import fill


def test_values_are_escaped_and_missing_ones_are_errors():
    page = fill("page.html", headline="<b>", lead="a & b", footer="'c'")
    assert "<h1>&lt;b&gt;</h1>" in page
    assert "a &amp; b" in page
    assert "prefers-color-scheme" in page
    with pytest.raises(jinja2.UndefinedError, match="headline"):
        fill("page.html", lead="", footer="")
