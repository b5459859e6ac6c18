"""Options that several commands have, and the two that all have."""

import functools
import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from hessprune.foundation.bars import Volume

Out = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="out/<name>")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
DataRoot = Annotated[Path, typer.Option(help="What relative paths of the recipe refer to.")]
Ignore = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Layers whose outputs keep their width, such as 'layer1.*'")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as prune.budget.macs=0.4")
]
ModelName = Annotated[
    str,
    typer.Argument(help="A known model, hf:FOLDER, timm:NAME, torchvision:NAME, file.py:factory, or package.module:f."),
]
Methods = Annotated[
    str | None,
    typer.Option(help="Such as 'random,joint; step=0.2'", show_default="random,magnitude,hap,sosp-h,sosp-i,joint"),
]
Quantity = Annotated[
    str | None, typer.Option(help="What budgets are shares of: macs, params or units.", show_default="macs")
]
Channels = Annotated[
    str | None, typer.Option(help="all, or inner: only those that a single layer emits.", show_default="all")
]
Split = Annotated[
    str | None, typer.Option(help="Where accuracy is measured: validation or test.", show_default="validation")
]
Weights = Annotated[Path | None, typer.Option(help="A checkpoint that must fit the model.")]
NumClasses = Annotated[int | None, typer.Option(help="Outputs of the model.", show_default="those of the data, or 10")]

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show results and errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Leave a line for every stage, however short.")]

_volume: ContextVar[Volume] = ContextVar("hessprune_volume", default="normal")


def volume() -> Volume:
    """Return how much the running command shows while it works; of several processes, the first one speaks."""
    return _volume.get() if is_first_process() else "quiet"


def is_first_process() -> bool:
    """Return whether this is the only process of a command, or the first of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def with_volume(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `-q` and `-v`."""
    signature = inspect.signature(function)
    added = {"quiet": Quiet, "verbose": Verbose}

    @functools.wraps(function)
    def command(quiet: bool = False, verbose: bool = False, **named: Any) -> None:
        token = _volume.set("quiet" if quiet else "verbose" if verbose else "normal")
        try:
            function(**named)
        finally:
            _volume.reset(token)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in added.items()
    ]
    own = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in signature.parameters.values()]
    command.__signature__ = signature.replace(parameters=[*own, *parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, **added}
    return command
