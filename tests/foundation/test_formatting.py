import pytest

from hessprune.foundation.formatting import bytes_text, count_text, html_table, shortened, text_table


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (50, "50"), (999, "999"), (1_000, "1 k"), (1_234, "1.2 k"), (12_400_000, "12.4 M"), (999_960, "1 M"),
     (999_940, "999.9 k"), (1_200_000_000, "1.2 G"), (3e15, "3000 T")],
)  # fmt: skip
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(220, "220 B"), (7_824, "7.8 kB"), (4_800_000, "4.8 MB")])
def test_bytes(value: float, text: str) -> None:
    assert bytes_text(value) == text


def test_tables() -> None:
    lines = text_table(["name", "n"], [["a", 1], ["longer", 22]]).splitlines()
    assert lines == ["name     n", "a        1", "longer  22"]
    page = html_table(["a & b"], [["<x>"], [2]], caption="1 < 2")
    assert "<caption>1 &lt; 2</caption>" in page
    assert "<th>a &amp; b</th>" in page
    assert "<td>&lt;x&gt;</td></tr><tr><td>2</td>" in page


def test_long_lists() -> None:
    assert shortened(["a"]) == "a"
    assert shortened(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
