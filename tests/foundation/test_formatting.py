import pytest

from hessprune.foundation.formatting import (
    bytes_text,
    count_text,
    duration_text,
    html_table,
    shortened,
    shown,
    text_table,
)


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


@pytest.mark.parametrize(("seconds", "text"), [(0, "1 s"), (98, "98 s"), (150, "2 min"), (6000, "1.7 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


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


def _loop() -> list[object]:
    values: list[object] = []
    values += [values, values]
    return values


class _Unwilling:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        list(range(10**6)),
        {"a" * 999: "b" * 999},
        10**5000,
        "a\nb" * 99,
        _loop(),
        _Unwilling(),
        b"x" * 10**6,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_in_messages_are_one_short_line(value: object) -> None:
    assert len(shown(value)) <= 80
    assert "\n" not in shown(value)


@pytest.mark.parametrize("value", ["hap", 3, None, [1, 2], {"a": (1, 2)}, 0.5, -1, True, ("layer1.*",)])
def test_short_values_are_written_as_python_does(value: object) -> None:
    assert shown(value) == repr(value)
