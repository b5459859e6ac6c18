"""The table of operators: its label rule, its linear map, its derivative and its integer kernel stand in one value.

The walk over a captured graph, the function modes that watch a model run, and the quantiser all look operators up here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch._ops import OpOverload

from hessprune.errors import ArgumentError
from hessprune.operators.call import Call
from hessprune.operators.maps import Reading
from hessprune.operators.names import is_in_place, operator_name

LabelRule = Callable[[Call], Any]
"""Returns the labels of an operator's output; see `call.py`."""

LinearMapReader = Callable[..., Reading | None]
"""Takes the operator's own arguments; see `maps.py`."""

Derivative = Literal["piecewise-linear", "product", "quotient", "smooth", "look"]
"""The output as a function of the tensor arguments.

`piecewise-linear`: in all of them together. `product`: in each of them alone. `quotient`: in the first of them alone.
`smooth`: any other function. `look`: a shape, a type or another fact without a derivative.
"""

Integer = Literal[
    "layer", "transposed layer", "sum", "product", "pool", "lookup", "activation", "join", "move", "split", "same"
]
"""The kernel that computes the operator in integers.

`layer`: a convolution or a linear layer; `transposed layer`: with the output channels along axis 1 of the weight.
`sum`, `product`: of two values. `pool`: an average. `lookup`: a function, by a table with an entry for each integer.
`activation`: the end of the kernel in front of it. `join`: values side by side. `move`: values in another place.
`split`: values taken apart. `same`: the input itself, in evaluation mode.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """All that the library knows about one operator."""

    name: str
    """See `operator_name`."""
    labels: LabelRule | None = None
    """None: the walk freezes all arguments of the operator."""
    linear_map: LinearMapReader | None = None
    """None: the operator multiplies by no weight."""
    derivative: Derivative = "smooth"
    integer: Integer | None = None
    """None: computed in floats."""
    overloads: tuple[str, ...] = ()
    """ATen overloads that have this kernel; all of them if empty."""

    def is_piecewise_linear(self, dependent: Sequence[int]) -> bool:
        """Return whether the output is piecewise linear in the tensor arguments at some positions, together.

        Example:
            >>> product = Operator(name="mul", derivative="product")
            >>> product.is_piecewise_linear([1]), product.is_piecewise_linear([0, 1])
            (True, False)
        """
        if not dependent or self.derivative in {"piecewise-linear", "look"}:
            return True
        if self.derivative == "product":
            return len(dependent) == 1
        return self.derivative == "quotient" and list(dependent) == [0]


OPERATORS: dict[str, Operator] = {}
"""All operators, by name."""


def register(
    *names: str,
    labels: LabelRule | None = None,
    linear_map: LinearMapReader | None = None,
    derivative: Derivative = "smooth",
    integer: Integer | None = None,
    overloads: tuple[str, ...] = (),
) -> None:
    """Add operators that have everything but their name in common.

    Args:
        *names: See `operator_name`.
        labels: The label rule, a function of one `Call`.
        linear_map: The function that reads the operator's arguments as a product with a weight.
        derivative: What the output is as a function of the tensor arguments.
        integer: The kernel that a runtime for integers has.
        overloads: ATen overloads that have this kernel; all of them if empty.

    Raises:
        ArgumentError: A name stands in the table already.
    """
    if taken := sorted(OPERATORS.keys() & set(names)):
        raise ArgumentError(
            f"`names` must be new to the table of operators, got {taken}. Change the entries that exist."
        )
    for name in names:
        OPERATORS[name] = Operator(
            name=name,
            labels=labels,
            linear_map=linear_map,
            derivative=derivative,
            integer=integer,
            overloads=overloads,
        )


def operator_of(target: Any) -> Operator:
    """Return the entry of an operator; without one, an entry that says that nothing is known."""
    name = operator_name(target)
    return OPERATORS.get(name) or Operator(name=name)


def integer_kind(target: Any) -> Integer | None:
    """Return the integer kernel of a node's target; None without one, and for functions outside ATen.

    Parts taken out of a tuple (Python's `getitem`) count as an operator.
    """
    if not isinstance(target, OpOverload) and operator_name(target) != "getitem":
        return None
    entry = operator_of(target)
    is_covered = not entry.overloads or getattr(target, "_overloadname", None) in entry.overloads
    return entry.integer if is_covered else None


def read_linear_map(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading | None:
    """Return the tensors of a product with a weight, and what makes its `LinearMap`; None for any other function.

    Forms that write to a tensor are not read: the caller computes the result anew.
    """
    reader = operator_of(func).linear_map
    return None if reader is None or is_in_place(func) or "out" in kwargs else reader(*args, **kwargs)
