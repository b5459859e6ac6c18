"""A hook of mkdocs: one page of reference for each stage of the public names, made from their docstrings."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent.resolve()
STUB = DOCS.parent / "src" / "hessprune" / "__init__.pyi"
SOURCE = "https://github.com/hessprune/hessprune/blob/main/"
LINK = re.compile(r"\]\((?!https?:|#)([^)]*)\)")
LEFT_OUT = re.compile(r"results/|notebooks/|.*\.py$")
"""What lies beside the pages and is no part of the site."""
FENCE = re.compile(r"^```(\w+) \w+$", re.MULTILINE)
"""A block of code that the tests skip where a package is missing says so after its language."""


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the public names of each stage, and where each is defined: `hp.prune`, `hessprune.pruning.prune.prune`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for block in STUB.read_text("utf-8").split("\n\n")[1:]:
        title = block.split("\n")[0].removeprefix("# ").partition(":")[0]
        names = re.findall(r"from (\S+) import (\w+) as", block)
        if names:
            found[title[0].upper() + title[1:]] = [(f"hp.{name}", f"{home}.{name}") for home, name in names]
    return found


def page(title: str, names: list[tuple[str, str]]) -> str:
    """Return the text of one page."""
    parts = [f"::: {home}\n    options:\n      heading: {name}" for name, home in names]
    return "\n\n".join([f"# {title}", "`import hessprune as hp`", *parts]) + "\n"


def address(title: str) -> str:
    """Return where the page of a stage lies."""
    return f"reference/{title.lower().replace(' ', '-')}.md"


class Examples(griffe.Extension):
    """Show `Example:` in docstrings as code; mkdocstrings knows the plural alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def on_config(config: Any) -> Any:
    """List the pages of reference in the navigation."""
    reference = next(entry for entry in config.nav if "Reference" in entry)
    reference["Reference"] = [reference["Reference"], *({title: address(title)} for title in stages())]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of reference."""
    for title, names in stages().items():
        files.append(File.generated(config, address(title), content=page(title, names)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leave to a block of code its language alone, and look for files outside the site where the source lies."""
    folder = DOCS / Path(page.file.src_uri).parent

    def at_source(link: re.Match[str]) -> str:
        path, hash_, place = link[1].partition("#")
        target = (folder / path).resolve()
        if not target.exists() or (
            target.is_relative_to(DOCS) and not LEFT_OUT.match(target.relative_to(DOCS).as_posix())
        ):
            return link[0]
        return f"]({SOURCE}{target.relative_to(DOCS.parent).as_posix()}{hash_}{place})"

    return LINK.sub(at_source, FENCE.sub(r"```\1", markdown))
