"""Numbers, tables and HTML for the values that a user prints."""

import html
import itertools
import reprlib
from collections.abc import Iterable, Sequence

PREFIXES = ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))


def count_text(value: float) -> str:
    """Write a count with at most one decimal, and from a thousand on with a prefix.

    Example:
        >>> from hessprune.foundation.formatting import count_text
        >>> count_text(50), count_text(1_200), count_text(12_400_000), count_text(999_960)
        ('50', '1.2 k', '12.4 M', '1 M')
    """
    text = f"{value:.0f}"
    for scale, prefix in PREFIXES:
        if round(1000 * value / scale, 1 if prefix != "k" else 0) >= 1000:  # as the smaller prefix would write it
            text = f"{value / scale:.1f}".removesuffix(".0") + f" {prefix}"
    return text


def bytes_text(value: float) -> str:
    """Write a number of bytes.

    Example:
        >>> from hessprune.foundation.formatting import bytes_text
        >>> bytes_text(220), bytes_text(4_800_000)
        ('220 B', '4.8 MB')
    """
    text = count_text(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration_text(seconds: float) -> str:
    """Write a time in its largest unit, without false precision.

    Example:
        >>> from hessprune.foundation.formatting import duration_text
        >>> duration_text(0.3), duration_text(59), duration_text(250), duration_text(9000)
        ('1 s', '59 s', '4 min', '2.5 h')
    """
    if seconds < 99:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> from hessprune.foundation.formatting import counted
        >>> counted(1, "group"), counted(2, "group")
        ('1 group', '2 groups')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def text_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return aligned columns: the first to the left, all others to the right.

    Example:
        >>> from hessprune.foundation.formatting import text_table
        >>> print(text_table(["layer", "units"], [["conv1", 8], ["conv10", 16]]))
        layer   units
        conv1       8
        conv10     16
    """
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(_padded(line, widths)).rstrip() for line in lines)


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return an HTML table with all texts escaped.

    Example:
        >>> from hessprune.foundation.formatting import html_table
        >>> html_table(["a"], [["<b>"]])
        '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(_row(row, "td") for row in rows)
    return f"<table>{title}<thead>{_row(head, 'th')}</thead><tbody>{body}</tbody></table>"


def shortened(names: Sequence[str], most: int = 3) -> str:
    """Join the first names; say how many follow.

    Example:
        >>> from hessprune.foundation.formatting import shortened
        >>> shortened(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shown(value: object, most: int = 80) -> str:
    """Write a value for a message: its `repr` in one line, shortened in the middle.

    Long texts, large containers and numbers of many digits are not written in full first.

    Example:
        >>> from hessprune.foundation.formatting import shown
        >>> shown("hap"), shown([1, 2]), shown("x" * 1000, 20)
        ("'hap'", '[1, 2]', "'xxxxxxxx…xxxxxxxxx'")
    """
    if isinstance(value, int) and value.bit_length() > 4 * most:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # of a repr that the user wrote
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[most // 2 - most :]}"


class _ShortRepr(reprlib.Repr):
    """As `repr`, with an end; dicts keep their order."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 3, 200, 400, 400
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = 8

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        if level <= 0:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in itertools.islice(x.items(), self.maxdict)
        ]
        return "{" + ", ".join(pairs + ["..."] * (len(x) > self.maxdict)) + "}"


_SHORT = _ShortRepr()


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(line, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _row(cells: Sequence[object], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop; the name of its class if it says nothing.

    Example:
        >>> first_line(ValueError("too small."))
        'too small'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
