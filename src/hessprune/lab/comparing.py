"""What a comparison is asked to do, in Python or as text from the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from hessprune.costs.budget import Budget
from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice, check_range, nearest
from hessprune.foundation.formatting import shown
from hessprune.lab.settings import PruneSettings
from hessprune.methods.text import as_method, split_methods
from hessprune.planning.implants import Implant

T = TypeVar("T")
OPTIONS = ("step", "implant", "start", "rank")
"""Settings of `prune` that a row may change: step of the ranking; share, start and rank of implants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareSettings:
    """Methods × budgets × draws, on one model.

    Attributes:
        methods: One row each: a criterion with its options, such as `"hap(estimator=hutchinson)"`, and behind
            semicolons the settings of `prune` that the row changes, such as `"joint; step=0.2"` or
            `"joint; implant=0.1; start=zero"`.
        budgets: Kept shares of `quantity`, in (0, 1].
        quantity: `"macs"`, `"params"`, or `"units"`: the last counts channels alike and ignores what they cost.
        seeds: Each draws its own calibration images from the training images.
        compensate: Whether the survivors compensate: one way, or both.
        channels: `"all"`, or `"inner"`: only units that a single layer emits, which spares the residual stream.
        ignore: Name patterns of layers whose outputs keep their width.
        epochs: Fine-tune every pruned model for so long, as the recipe says; 0 leaves it at one-shot.
        lrs: Peak learning rates to try on the first draw; for each method and budget the one that validates best
            counts, and later draws use no other.
        split: Where accuracy is measured: `"validation"` or `"test"`.

    Example:
        >>> import hessprune as hp
        >>> hp.CompareSettings(methods=("magnitude", "joint; step=0.2"), budgets=(0.5,), seeds=(0,)).methods
        ('magnitude', 'joint; step=0.2')
    """

    methods: tuple[str, ...] = ("random", "magnitude", "hap", "sosp-h", "sosp-i", "joint")
    budgets: tuple[float, ...] = (0.75, 0.6, 0.5, 0.4)
    quantity: Literal["macs", "params", "units"] = "macs"
    seeds: tuple[int, ...] = (0, 1, 2)
    compensate: tuple[bool, ...] = (False, True)
    channels: Literal["all", "inner"] = "all"
    ignore: tuple[str, ...] = ()
    epochs: int = 0
    lrs: tuple[float, ...] = ()
    split: Literal["validation", "test"] = "validation"

    def __post_init__(self) -> None:
        for name in ("methods", "budgets", "seeds", "compensate"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ArgumentError(f"`{name}` must name at least one and none twice, got {shown(list(values))}.")
        for row in self.methods:
            parse_row(row)
        for budget in self.budgets:
            if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
                raise ArgumentError(
                    f"`budgets` must be kept shares in (0, 1], got {shown(budget)}. Write 0.5 to keep half."
                )
        for seed in self.seeds:
            check_range("seeds", seed, low=0, integer=True)
        for rate in self.lrs:
            if not 0 < rate < float("inf"):
                raise ArgumentError(
                    f"`lrs` must be finite numbers above 0, got {shown(rate)}. Write for example 0.03,0.1"
                )
        check_range("epochs", self.epochs, low=0, integer=True)
        check_choice("quantity", self.quantity, ("macs", "params", "units"))
        check_choice("channels", self.channels, ("all", "inner"))
        check_choice("split", self.split, ("validation", "test"))

    @classmethod
    def from_text(cls, options: Mapping[str, Any]) -> "CompareSettings":
        """Read options with lists such as `"0.75,0.5"` as text; what is None keeps its default.

        Raises:
            ArgumentError: A list cannot be read, or holds an impossible value.

        Example:
            >>> import hessprune as hp
            >>> hp.CompareSettings.from_text({"budgets": "0.5,0.25", "seeds": "0", "epochs": None}).budgets
            (0.5, 0.25)
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name, read in {"budgets": float, "seeds": int, "lrs": float}.items():
            if name in given:
                given[name] = _items(name, given[name], read)
        if "methods" in given:
            given["methods"] = split_methods(given["methods"])
        if "compensate" in given:
            given["compensate"] = (given["compensate"],)
        return replace(cls(), **given | {"ignore": tuple(given.get("ignore", ()))})


def parse_row(text: str) -> tuple[str, dict[str, Any]]:
    """Return the method of a row, and the settings of `prune` that it changes.

    Raises:
        ArgumentError: There is no such method or setting, or the setting cannot have this value.

    Example:
        >>> from hessprune.lab.comparing import parse_row
        >>> parse_row("joint; step=0.2")
        ('joint', {'step': 0.2})
    """
    method, *settings = (part.strip() for part in text.split(";"))
    changes: dict[str, Any] = {}
    for setting in settings:
        name, _, value = (part.strip() for part in setting.partition("="))
        if name not in OPTIONS or not value:
            listed = ", ".join(f"{option}=VALUE" for option in OPTIONS)
            raise ArgumentError(
                f"a row of `methods` must change {listed}, got {shown(setting)}.{nearest(name, OPTIONS)}"
            )
        changes[name] = _number(value)
    prune_with(PruneSettings(budget=Budget(macs=0.5)), str(as_method(method)), changes)
    return method, changes


def prune_with(prune: PruneSettings, method: str, changes: Mapping[str, Any]) -> PruneSettings:
    """Return settings of pruning as a row changes them."""
    ranking, implant = prune.ranking, prune.implant
    if "step" in changes:
        ranking = replace(ranking, step=changes["step"])
    form = {"share" if name == "implant" else name: value for name, value in changes.items() if name != "step"}
    if form:
        implant = replace(implant or Implant(share=0.1), **form)
    return replace(prune, method=method, ranking=ranking, implant=implant)


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _items(name: str, text: str, read: Callable[[str], T]) -> tuple[T, ...]:
    """Read a list with commas."""
    try:
        return tuple(read(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ArgumentError(
            f"`{name}` must be numbers with commas, got {shown(text)}. Write for example 1,2."
        ) from error
