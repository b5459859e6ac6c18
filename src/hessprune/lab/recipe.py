"""Recipes: a run's settings as YAML, with overrides from the command line and errors that name the key."""

import dataclasses
import math
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
from hessprune.foundation.formatting import counted, shortened, shown
from hessprune.foundation.options import options_of
from hessprune.lab.settings import RunSettings

LARGEST = 1_000_000
"""Bytes of a recipe."""
MOST_VALUES = 10_000
LONGEST = 1000
ROOM = 280
NO_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError)
"""Raised by texts that are no YAML, or hold a date that does not exist, a number of too many digits, and so on."""


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
    name = shown(str(path), 160)
    try:
        with Path(path).open("rb") as file:
            document = _read_yaml(_text(file.read(LARGEST + 1)))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise RecipeError(f"recipe must be a readable YAML file, got {name} ({reason}). Check the path.") from error
    except NO_YAML as error:
        raise RecipeError(f"recipe must be YAML, got {name}: {_one_line(error)}.") from error
    if not isinstance(document, dict):
        raise RecipeError(
            f"recipe must be a mapping of sections, got a {type(document).__name__} in {name}. "
            "Start with the sections model and prune."
        )
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
    unknown = list(_unknown_keys(RunSettings, document)) or list(_impossible(RunSettings, document))
    if unknown:
        raise RecipeError(_joined(unknown))
    try:
        return TypeAdapter(RunSettings).validate_python(document)
    except ValidationError as error:
        raise RecipeError(_joined([_problem(item) for item in error.errors()])) from error


def packaged_recipe(name: str) -> Path:
    """Return the path of a recipe that comes with the package.

    Raises:
        RecipeError: There is none of that name.
    """
    # In a wheel the recipes lie inside the package; in a checkout they are the repository's own folder.
    folders = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")
    found = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    if found is None:
        raise RecipeError(f"packaged recipe must exist, got {shown(name)}. Give the path of a YAML file instead.")
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
        raise RecipeError(f"`--set` must be KEY=VALUE, got {shown(override)}. Write for example prune.budget.macs=0.4")
    target = document
    for section in sections:
        if not isinstance(target.get(section), dict):
            target[section] = {}
        target = target[section]
    try:
        target[last] = _read_yaml(text)
    except NO_YAML as error:
        raise RecipeError(
            f"`--set {shown(key)[1:-1]}` must have a YAML value, got {shown(text)}: {_one_line(error)}."
        ) from error


def _text(content: bytes) -> str:
    """Return the text of a file of no more than the largest size.

    Raises:
        YAMLError: It is larger.
    """
    if len(content) > LARGEST:
        raise yaml.YAMLError(f"more than {LARGEST:,} bytes")
    return content.decode()


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {shown(twice)} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str) -> Any:
    """Return the values of one YAML document.

    Raises:
        YAMLError: It is none, or aliases make it larger than a recipe is.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_size(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, or a value that holds itself")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Return the number of values below a node, each alias counted in full; one that holds itself has no end."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = [item for part in parts for item in (part if isinstance(part, tuple) else (part,))]
        sizes[id(node)] = 1 + sum(_expanded_size(item, sizes) for item in inner)
    return sizes[id(node)]


def _unknown_keys(cls: type, value: object, path: str = "") -> Iterator[str]:
    """Yield a message for every key that no field answers to, with the nearest one that exists."""
    if not isinstance(value, Mapping):
        return
    hints = typing.get_type_hints(cls)
    known = {item.name: hints[item.name] for item in dataclasses.fields(cls)}
    for key, inner in value.items():
        if key not in known:
            choices = nearest(shown(key), known) or f" Choose from {shortened([*known], 8)}."
            yield f"unknown key `{path}{_spoken(key)}`.{choices}"
        elif section := _dataclass_in(known[key]):
            yield from _unknown_keys(section, inner, f"{path}{key}.")


def _dataclass_in(hint: object) -> type | None:
    """Return the dataclass of a type such as `Budget` or `FinetuneConfig | None`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def _impossible(cls: type, value: object, path: str = "") -> Iterator[str]:
    """Yield a message for every value that no setting can have, though it could be converted to one."""
    if not isinstance(value, Mapping):
        return
    hints = typing.get_type_hints(cls)
    for key, inner in value.items():
        section, options = _dataclass_in(hints[key]), options_of(hints[key])
        if section:
            yield from _impossible(section, inner, f"{path}{key}.")
        members = inner if isinstance(inner, list) else [inner]
        kinds = {kind for option in options for kind in (option, *typing.get_args(option))}
        for reason in dict.fromkeys(_reason(member, kinds) for member in members):
            if reason:
                yield f"`{path}{key}` must be {reason}, got {shown(inner)}. Correct it in the recipe."


def _reason(value: object, kinds: set[Any]) -> str:
    """Return the way in which a value must be otherwise; empty if it may be right."""
    if isinstance(value, bool):
        is_asked = bool in kinds or Any in kinds or any(kind is value for kind in kinds)
        return "" if is_asked or not kinds & {int, float, str} else "no true or false"
    if isinstance(value, int):
        return "" if abs(value) < 2**63 else "a number of at most 64 bits"
    if isinstance(value, float):
        return "" if math.isfinite(value) else "a finite number"
    if isinstance(value, str):
        return "" if len(value) <= LONGEST and value.isprintable() else f"one line of at most {LONGEST} characters"
    return ""


def _problem(item: Mapping[str, Any]) -> str:
    path = ".".join(_spoken(part) for part in item["loc"]) or "recipe"
    if item["type"] == "value_error":
        return f"`{path}`: {item['ctx']['error']}"
    if item["type"] == "dataclass_type":
        return f"`{path}` must be a section of keys, got {shown(item['input'])}."
    if item["type"] == "missing":
        return f"`{path}` must be given. Add it to the recipe."
    return f"`{path}`: {item['msg'].removeprefix('Input ')}, got {shown(item['input'])}."


def _spoken(key: object) -> str:
    """Return a key as it stands in the recipe, shortened."""
    return shown(key, 40).strip("'") if isinstance(key, str) else shown(key, 40)


def _joined(problems: Sequence[str]) -> str:
    """Return all problems that fit a short line, and the number of the others."""
    text = problems[0]
    for number, problem in enumerate(problems[1:], 1):
        if len(text) + len(problem) > ROOM:
            return f"{text}; and {counted(len(problems) - number, 'more problem')}"
        text += f"; {problem}"
    return text


def _one_line(error: BaseException) -> str:
    text = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 120 else f"{text[:60]}…{text[-59:]}"
