"""Notebooks from guides: each block of code becomes a cell, what stands between two blocks a cell of text."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.resolve()
FOLDER = DOCS.parent / "examples" / "notebooks"
SOURCE = "https://github.com/hessprune/hessprune/blob/main/"
GUIDES = ("own-cnn", "hugging-face-classifier", "detector")
"""Guides that are notebooks, too."""
BLOCK = re.compile(r"^```(\w+)(?: \w+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)]*)\)")
SET_UP = """Made from [the guide]({source}docs/guides/{name}.md) by `python docs/build.py`. To run it:

```sh
git clone https://github.com/hessprune/hessprune && cd hessprune
pip install torch && pip install -e '.[all]'{more}
```"""


def path_of(guide: str) -> Path:
    """Return where the notebook of a guide lies."""
    return FOLDER / f"{guide}.ipynb"


def notebook(guide: str) -> str:
    """Return the notebook of a guide as JSON."""
    page = DOCS / "guides" / f"{guide}.md"
    text = page.read_text("utf-8")
    cells: list[dict[str, Any]] = []
    end = 0
    for block in BLOCK.finditer(text):
        language, body = block.groups()
        if language not in ("python", "text"):  # it stays in the text around it
            continue
        _add_text(cells, text[end : block.start()], page)
        end = block.end()
        if language == "python":
            code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
            cells.append(code | {"source": _lines(body)})
        elif "..." not in body:  # what the tests compare with what the cell prints
            cells[-1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": body.splitlines(keepends=True)}]
    _add_text(cells, text[end:], page)
    more = " transformers accelerate" if "```python transformers" in text else ""
    cells.insert(1, _text(SET_UP.format(source=SOURCE, name=guide, more=more)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _add_text(cells: list[dict[str, Any]], text: str, page: Path) -> None:
    """Add what stands between two blocks, a cell for each section, with links that hold anywhere."""

    def absolute(link: re.Match[str]) -> str:
        path, hash_, place = link[1].partition("#")
        target = (page.parent / path).resolve().relative_to(DOCS.parent).as_posix()
        return f"]({SOURCE}{target}{hash_}{place})"

    sections = re.split(r"(?m)^(?=## )", LINK.sub(absolute, text))
    cells += [_text(section.strip()) for section in sections if section.strip()]


def _text(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(text)}


def _lines(text: str) -> list[str]:
    return text.rstrip("\n").splitlines(keepends=True)
