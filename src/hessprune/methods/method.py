"""A method is a value: a criterion by name, with its options, that scores every unit of a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.foundation.options import check_options
from hessprune.foundation.symmetric import SymmetricMatrix
from hessprune.layers.input_moments import InputMoments
from hessprune.objectives.choice import Prefer
from hessprune.structure.belonging import check_groups
from hessprune.structure.groups import Group

METHODS: dict[str, "type[Method]"] = {}
"""Every method by its name, in the order in which the files of this room register them."""
M = TypeVar("M", bound="type[Method]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """Everything a method may look at."""

    model: nn.Module
    groups: Sequence[Group]
    batches: Any
    """Calibration data, a re-iterable of `(inputs, targets)`."""
    loss_fn: Any = None
    """The objective that judges outputs, from `choose_objective`; None for a method that needs none."""
    seed: int = 0
    moments: dict[str, InputMoments] | None = None
    """Receives the moments of layer inputs from a method that measures them, by weight; None where nobody asks."""

    def __post_init__(self) -> None:
        check_groups(self.model, self.groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Saliencies by group, and whatever else a method learned."""

    values: Mapping[str, Tensor]
    """`{group name: (U,)}`."""
    standard_error: Mapping[str, Tensor] | None = None
    interactions: Tensor | SymmetricMatrix | None = None
    """`(U, U)` over the units of all groups: what removing one unit adds to the cost of removing another."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the provenance of a plan."""


class Method(ABC):
    """A criterion with its options.

    Subclasses are frozen dataclasses: their fields are the options, checked against their annotations when a value is
    made. `@register` makes a subclass known by its `name` in `hp.saliency`, `hp.prune`, recipes and on the command
    line.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from hessprune.methods.method import Method, Scores, Scoring
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Constant(Method):
        ...     name = "constant"
        ...     value: float = 1.0
        ...
        ...     def score(self, scoring: Scoring) -> Scores:
        ...         return Scores(values={g.name: torch.full((g.num_units,), self.value) for g in scoring.groups})
        >>> str(Constant(value=2.0))
        'constant(value=2.0)'
    """

    __slots__ = ()
    name: ClassVar[str]
    needs: ClassVar[Prefer | None] = "labels"
    """What a method needs where no loss is given: cross-entropy if there are labels, else the dense outputs;
    the dense outputs in any case; the gradient of a cross-entropy; or nothing."""
    per_cost: ClassVar[bool] = True
    """Whether a ranking divides saliencies by the cost that a unit frees, unless it is told otherwise."""
    scores_tables: ClassVar[bool] = False
    """True if units that tables alone give, such as an embedding of words, are scored; else they stay, by name."""

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def score(self, scoring: Scoring) -> Scores:
        """Return the estimated loss increase of removing each unit, larger for units whose loss hurts more.

        Args:
            scoring: Model, groups, data, loss and seed. The model must be left as it was.

        Returns:
            One float64 tensor `(U,)` on the CPU for each group.
        """

    def with_refit(self, refit: bool) -> "Method":  # noqa: ARG002 - for subclasses
        """Return the method as it scores where the survivors will be refitted, or will not: most do not care."""
        return self

    def needs_whole(self) -> str | None:
        """Return what keeps a method from models whose parameters are spread over processes; None if nothing does."""
        return "needs whole weights"

    def options(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by name."""
        options = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, (value, default) in options.items() if value != default}

    @property
    def scored_as(self) -> str:
        """The text of the method without its limit of memory, which changes no score."""
        text = ",".join(f"{name}={value}" for name, value in self.options().items() if name != "memory_limit")
        return f"{self.name}({text})" if text else self.name

    def __str__(self) -> str:
        """`hap(estimator=hutchinson,num_probes=300)`; `hap` where every option has its default."""
        text = ",".join(f"{name}={value}" for name, value in self.options().items())
        return f"{self.name}({text})" if text else self.name


def register(method: M) -> M:
    """Make a method known by its name.

    Raises:
        ArgumentError: Another method has this name.
    """
    other = METHODS.get(method.name)
    if other is not None and other.__qualname__ != method.__qualname__:
        raise ArgumentError(f"`name` of a method must be new, got {shown(method.name)}, which {other.__name__} has.")
    METHODS[method.name] = method
    return method


def check_method(value: object) -> "Method":
    """Return a method given as a value.

    Raises:
        ArgumentError: The value is no method.
    """
    if isinstance(value, Method):
        return value
    if isinstance(value, type) and issubclass(value, Method):
        raise ArgumentError(f"`method` must be a value, got the class {value.__name__}. Write hp.{value.__name__}().")
    raise ArgumentError(f"`method` must be a name such as 'joint' or a value such as hp.Joint(), got {shown(value)}.")
