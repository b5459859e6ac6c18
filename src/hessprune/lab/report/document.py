"""The base of the values that reports are made from, which are saved as JSON, and their form of an accuracy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from hessprune.errors import DataError
from hessprune.foundation.files import read_json, write_json


class Document(ABC):
    """Base of the dataclasses that are saved as JSON; `to_json` and `from_json` are inverse to each other."""

    __slots__ = ()
    file: ClassVar[str]
    """Name of the file with its article, as messages call it: `a comparison.json`."""
    remedy: ClassVar[str]
    """The way to make the file again, a sentence."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)  # pyright: ignore[reportArgumentType]: subclasses are dataclasses

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Rebuild a value from `to_json`.

        Raises:
            DataError: The document is something else.
        """
        try:
            return cls(**cls.arguments(document))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"`document` must be {cls.file}, got one that lacks or misplaces {str(error)[:120]}. {cls.remedy}"
            ) from error

    @classmethod
    @abstractmethod
    def arguments(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the class, with values and tuples where JSON has dicts and lists."""

    def save(self, path: Path | str) -> Path:
        """Write the value as JSON, in one step."""
        return write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote."""
        return cls.from_json(read_json(path))


def percent_text(accuracy: float, spread: float | None) -> str:
    """Return an accuracy in per cent, with its spread where that is known.

    Example:
        >>> percent_text(0.841, 0.006), percent_text(0.841, None)
        ('84.1 ± 0.6', '84.1')
    """
    return f"{100 * accuracy:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
