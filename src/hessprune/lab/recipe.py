"""Recipes: a run's settings as YAML, with overrides from the command line and errors that name the key."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hessprune.errors import RecipeError
from hessprune.foundation.checks import nearest
from hessprune.foundation.files import write_text
from hessprune.lab.settings import RunSettings


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a recipe and apply overrides such as `"prune.budget.macs=0.4"`.

    Args:
        path: A YAML file.
        overrides: `KEY=VALUE` with a dotted key; the value is read as YAML. They win over the file.

    Returns:
        The checked settings, defaults filled in.

    Raises:
        RecipeError: The file is missing or not YAML, a key is unknown, or a value is impossible.
    """
    try:
        document = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise RecipeError(f"recipe must be a readable YAML file, got '{path}' ({reason}). Check the path.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe must be YAML, got '{path}': {_one_line(error)}.") from error
    if not isinstance(document, dict):
        raise RecipeError(f"recipe must be a mapping of sections, got a {type(document).__name__} in '{path}'.")
    for override in overrides:
        _override(document, override)
    return parse_recipe(document)


def parse_recipe(document: Mapping[str, Any]) -> RunSettings:
    """Check a recipe that was read already.

    Raises:
        RecipeError: A key is unknown or a value is impossible; all problems are in the one message.

    Example:
        >>> parse_recipe({"model": {"weights": "a.safetensors"}, "prune": {"budgt": {"macs": 0.5}}})
        Traceback (most recent call last):
        hessprune.errors.RecipeError: unknown key `prune.budgt`. Did you mean 'budget'?
    """
    unknown = list(_unknown_keys(RunSettings, document))
    if unknown:
        raise RecipeError("; ".join(unknown))
    try:
        return TypeAdapter(RunSettings).validate_python(document)
    except ValidationError as error:
        raise RecipeError("; ".join(_problem(item) for item in error.errors())) from error


def packaged_recipe(name: str) -> Path:
    """Return the path of a recipe that comes with the package.

    Raises:
        RecipeError: There is none of that name.
    """
    # In a wheel the recipes lie inside the package; in a checkout they are the repository's own folder.
    folders = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")
    found = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    if found is None:
        raise RecipeError(f"packaged recipe must exist, got {name!r}. Give the path of a YAML file instead.")
    return found


def write_recipe(settings: RunSettings, path: Path | str) -> Path:
    """Write the settings, defaults included, as a recipe that reads back to the same value."""
    return write_text(path, yaml.safe_dump(settings.to_json(), sort_keys=False, allow_unicode=True))


def _override(document: dict[str, Any], override: str) -> None:
    """Set one dotted key in place, creating sections on the way.

    Raises:
        RecipeError: The override is not `KEY=VALUE`.
    """
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise RecipeError(f"`--set` must be KEY=VALUE, got {override!r}. Write for example prune.budget.macs=0.4")
    target = document
    for section in sections:
        if not isinstance(target.get(section), dict):
            target[section] = {}
        target = target[section]
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"`--set {key}` must have a YAML value, got {text!r}: {_one_line(error)}.") from error


def _unknown_keys(cls: type, value: object, path: str = "") -> Iterator[str]:
    """Yield a message for every key that no field answers to, with the nearest one that exists."""
    if not isinstance(value, Mapping):
        return
    hints = typing.get_type_hints(cls)
    known = {item.name: hints[item.name] for item in dataclasses.fields(cls)}
    for key, inner in value.items():
        if key not in known:
            choices = nearest(key, known) or f" Choose from {', '.join(known)}."
            yield f"unknown key `{path}{key}`.{choices}"
        elif section := _dataclass_in(known[key]):
            yield from _unknown_keys(section, inner, f"{path}{key}.")


def _dataclass_in(hint: object) -> type | None:
    """Return the dataclass of a type such as `Budget` or `FinetuneConfig | None`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def _problem(item: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "value_error":
        return f"`{path}`: {item['ctx']['error']}"
    if item["type"] == "dataclass_type":
        return f"`{path}` must be a section of keys, got {item['input']!r}."
    if item["type"] == "missing":
        return f"`{path}` must be given. Add it to the recipe."
    return f"`{path}`: {item['msg'].removeprefix('Input ')}, got {item['input']!r}."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
