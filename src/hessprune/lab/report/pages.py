"""Pages from templates: names and numbers are escaped, and a name that a template lacks is an error."""

from importlib.resources import files
from typing import Any

import jinja2


def fill(template: str, **values: Any) -> str:
    """Return a page, made of a file of `templates` and what it names.

    Example:
        >>> "<h1>a &lt; b</h1>" in fill("page.html", headline="a < b", lead="", footer="")
        True
    """
    folder = files("hessprune.lab.report") / "templates"

    def load(name: str) -> str:
        return (folder / name).read_text("utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
