"""Memory of finished stages: `hp.prune` has none, a whole run keeps each stage in a folder."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn

from hessprune.costs.latency_table import LatencyTable
from hessprune.methods.values import Saliency
from hessprune.planning.plan import Plan

Settings = Mapping[str, Any]
"""What decides a result, besides the dense model and the calibration data; JSON values."""


class Memory(Protocol):
    """Returns what a stage made before under equal settings, or lets it be made now."""

    def saliency(self, settings: Settings, make: Callable[[], Saliency]) -> Saliency:
        """Return the saliencies of all units."""
        ...

    def table(self, settings: Settings, make: Callable[[], LatencyTable]) -> LatencyTable:
        """Return a latency table."""
        ...

    def plan(self, settings: Settings, make: Callable[[], Plan]) -> Plan:
        """Return the plan of one step."""
        ...

    def model(self, settings: Settings, plan: Plan, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the pruned model."""
        ...


class NoMemory:
    """Makes everything now."""

    def saliency(self, settings: Settings, make: Callable[[], Saliency]) -> Saliency:  # noqa: ARG002
        """Make the saliencies."""
        return make()

    def table(self, settings: Settings, make: Callable[[], LatencyTable]) -> LatencyTable:  # noqa: ARG002
        """Measure the table."""
        return make()

    def plan(self, settings: Settings, make: Callable[[], Plan]) -> Plan:  # noqa: ARG002
        """Make the plan."""
        return make()

    def model(self, settings: Settings, plan: Plan, make: Callable[[], nn.Module]) -> nn.Module:  # noqa: ARG002
        """Make the pruned model."""
        return make()
