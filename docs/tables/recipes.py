"""The keys of recipes: name, default, meaning."""

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator
from typing import Any

from hessprune.costs.budget import Budget
from hessprune.costs.target import LatencyTarget
from hessprune.lab.settings import (
    DataSettings,
    ExportSettings,
    ModelSettings,
    PruneSettings,
    QuantizeSettings,
    ReportSettings,
    RunSettings,
)
from hessprune.planning.implants import Implant
from hessprune.planning.ranking import Ranking
from hessprune.training.config import FinetuneConfig

SECTIONS = {
    "": RunSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "prune": PruneSettings,
    "prune.budget": Budget,
    "prune.ranking": Ranking,
    "prune.implant": Implant,
    "prune.latency": LatencyTarget,
    "finetune": FinetuneConfig,
    "quantize": QuantizeSettings,
    "export": ExportSettings,
    "report": ReportSettings,
}


def recipe_tables() -> str:
    """Return one table for each section of a recipe: key, default, meaning."""
    return "\n\n".join(_table(path, section) for path, section in SECTIONS.items())


def _table(path: str, section: type) -> str:
    title = f"### `{path}`" if path else "### Top level"
    rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in _keys(path, section)]
    return "\n".join([title, "", "| key | default | meaning |", "|---|---|---|", *rows])


def _keys(path: str, section: type) -> Iterator[tuple[str, str, str]]:
    meanings, hints = _meanings(section), typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        inner = f"{path}.{item.name}".strip(".")
        yield item.name, _default(item, inner), meanings[item.name] + _choices(hints[item.name], meanings[item.name])


def _meanings(section: type) -> dict[str, str]:
    """Read the fields' meanings from the class's docstring."""
    text = inspect.getdoc(section) or ""
    block = re.search(r"(?:Attributes|Args):\n((?:    .*\n?|\n)+)", text)
    entries = re.findall(r"^    (\w+): ((?:.+)(?:\n {8,}.+)*)", block[1] if block else "", re.MULTILINE)
    return {name: " ".join(meaning.split()).replace("|", "\\|") for name, meaning in entries}


def _default(item: "dataclasses.Field[Any]", path: str) -> str:
    if path in SECTIONS:
        return "required" if _required(item) else f"see `{path}`"
    if item.default is dataclasses.MISSING and not _required(item):
        return "other defaults"
    return "required" if _required(item) else f"`{_yaml(item.default)}`"


def _required(item: "dataclasses.Field[Any]") -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _choices(hint: Any, meaning: str) -> str:
    """Name the choices of a `Literal` that the meaning does not name."""
    options = [hint, *typing.get_args(hint)]
    literal = next((option for option in options if typing.get_origin(option) is typing.Literal), None)
    choices = ["true", "false"] if bool in options else []
    choices += typing.get_args(literal) if literal is not None else []
    if literal is None or all(f'"{choice}"' in meaning for choice in choices):
        return ""
    return f" One of {', '.join(f'`{choice}`' for choice in choices)}."
