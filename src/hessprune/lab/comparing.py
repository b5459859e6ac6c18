"""What a comparison is asked to do, in Python or as text from the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice, check_range, nearest
from hessprune.methods.table import METHODS
from hessprune.planning.implants import Implant

T = TypeVar("T")
ESTIMATORS = ("exact", "rademacher", "hutchinson")
PRECISIONS = ("fp32", "bf16", "fp16", "fp64")
IMPLANTS = {
    "implant": Implant(share=0.5),
    "implant=fitted": Implant(share=0.5, start="fitted"),
    "implant=zero": Implant(share=0.5, start="zero"),
}
NUMBERS = {"probes": ("num_probes", int), "step": ("step", float), "temperature": ("temperature", float)}


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareSettings:
    """Methods × budgets × draws, on one model.

    Attributes:
        methods: Saliencies by name, with what differs from the recipe behind colons: `"hap:hutchinson:probes=300"`,
            `"hap:hutchinson:bf16"`, `"joint:step=0.2"`, `"joint:temperature=4"`, `"joint:implant"`,
            `"joint:implant=zero"`.
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
                raise ArgumentError(f"`{name}` must name at least one and none twice, got {list(values)!r}.")
        for method in self.methods:
            parse_method(method)
        for budget in self.budgets:
            if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
                raise ArgumentError(f"`budgets` must be kept shares in (0, 1], got {budget!r}. Write 0.5 to keep half.")
        for seed in self.seeds:
            check_range("seeds", seed, low=0, integer=True)
        for rate in self.lrs:
            if not 0 < rate < float("inf"):
                raise ArgumentError(f"`lrs` must be finite numbers above 0, got {rate!r}. Write for example 0.03,0.1")
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
            >>> CompareSettings.from_text({"budgets": "0.5,0.25", "seeds": "0", "epochs": None}).budgets
            (0.5, 0.25)
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name, read in {"methods": str, "budgets": float, "seeds": int, "lrs": float}.items():
            if name in given:
                given[name] = _items(name, given[name], read)
        if "compensate" in given:
            given["compensate"] = (given["compensate"],)
        return replace(cls(), **given | {"ignore": tuple(given.get("ignore", ()))})


def parse_method(text: str) -> Mapping[str, Any]:
    """Return the settings of `prune` that a method's name and its options stand for.

    Raises:
        ArgumentError: There is no such method or option.

    Example:
        >>> parse_method("hap:hutchinson:probes=300")
        {'method': 'hap', 'estimator': 'hutchinson', 'num_probes': 300}
    """
    name, *options = text.split(":")
    check_choice("methods", name, METHODS)
    changes: dict[str, Any] = {"method": name}
    for option in options:
        key, equals, value = option.partition("=")
        if key in ESTIMATORS and not equals:
            changes["estimator"] = key
        elif key in PRECISIONS and not equals:
            changes["precision"] = key
        elif option in IMPLANTS:
            changes["implant"] = IMPLANTS[option]
        elif key in NUMBERS and _is_positive(value):
            field, read = NUMBERS[key]
            changes[field] = read(value)
        else:
            known = [*ESTIMATORS, *PRECISIONS, *IMPLANTS, *(f"{number}=N" for number in NUMBERS)]
            raise ArgumentError(
                f"option of method {name!r} must be one of {', '.join(known)}, got {option!r}.{nearest(option, known)}"
            )
    return changes


def _items(name: str, text: str, read: Callable[[str], T]) -> tuple[T, ...]:
    """Read a list with commas."""
    try:
        return tuple(read(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ArgumentError(f"`{name}` must be numbers with commas, got {text!r}. Write for example 1,2.") from error


def _is_positive(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal() and float(text) > 0
