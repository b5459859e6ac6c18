"""How figures look: one style, colours that the page fills in, and the way from a figure to SVG.

Every colour is a placeholder that becomes a CSS variable of the page, so one drawing serves light and dark; text stays
text, in the page's own font.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Placeholder → CSS variable. The page defines them for light and dark, from a palette safe for colour-blind readers.
INK, MUTED, LINE, PAPER = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
BLUE, ORANGE, GREEN, GREY, PALE = "#0a0a05", "#0a0a06", "#0a0a07", "#0a0a08", "#0a0a09"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--card",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    GREY: "--grey",
    PALE: "--pale",
}
PRINTED = {INK: "#1b1f24", MUTED: "#5f6873", LINE: "#dfe3e8", PAPER: "#ffffff"}
"""What a picture has in place of the placeholders."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hessprune",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
}
WIDE, NARROW = 9.6, 4.4
"""Inches: at these widths on a screen and on a telephone, letters of size 10 have ten pixels."""
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


@contextmanager
def new_figure(width: float, height: float, *, printed: bool = False) -> Iterator[Figure]:
    """Yield an empty figure of so many inches, under the report's style; `printed` ones have colours of their own."""
    style: dict[Any, Any] = STYLE
    if printed:
        style = {key: PRINTED.get(value, value) for key, value in STYLE.items()} | {"figure.facecolor": "white"}
    with mpl.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure, label: str) -> str:
    """Return the figure as an SVG element: no metadata, no fixed size, colours from the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # several figures share a page: ids would clash
    for attribute in ("width", "height"):
        text = re.sub(rf'(<svg\b[^>]*?)\s{attribute}="[^"]*"', r"\1", text, count=1)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
