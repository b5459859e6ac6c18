"""The stages of a pruning, kept in the folders of a run."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.latency_table import LatencyTable
from hessprune.foundation.files import sha256, write_text
from hessprune.foundation.hashing import weights_sha256
from hessprune.foundation.identity import modules_sha256
from hessprune.foundation.trees import tensors_in
from hessprune.lab.context import Model, Run
from hessprune.lab.store import Stage, load_saliency, save_saliency
from hessprune.methods.values import Saliency
from hessprune.planning.packing import digest
from hessprune.planning.plan import Plan
from hessprune.pruning.memory import Settings
from hessprune.structure.groups import Group
from hessprune.surgery import checkpoint


class StageMemory:
    """Keeps saliencies, latency tables, plans and pruned models as stages of a run.

    Saliencies, tables and the plans of steps are kept by content: any two runs that share a folder of stages share
    them, whatever their budgets. The key of each stage holds the dense weights, the architecture, the groups, the
    calibration samples and the settings.

    Args:
        run: Its store, data and settings.
        dense: The dense model.
        groups: Its groups.
        label: The method, for the names of folders.
        own_plan: Whether the last plan belongs to the run's own budget and replaces an older one.
        check: Called before saliencies are measured; it may refuse the work.
    """

    def __init__(
        self,
        run: Run,
        dense: Model,
        groups: Sequence[Group],
        label: str,
        *,
        own_plan: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.dense, self.label, self.own_plan = run, dense, folder_name(label), own_plan
        model = dense.model
        self._check = check
        self._model = [weights_sha256(model), modules_sha256(model), digest(groups), run.device.type]
        data = run.data
        self._data = [data.calibration.digest().hex(), *data.reading, run.settings.data.batch_size]
        self.stages: dict[str, Stage] = {}
        """The last stage of each kind."""

    def saliency(self, settings: Settings, make: Callable[[], Saliency]) -> Saliency:
        """Return the saliencies of all units."""

        def write(folder: Path) -> None:
            self._check()
            save_saliency(make(), folder)

        stage = self._keep("2-saliency", write, settings)
        return load_saliency(stage.folder)

    def table(self, settings: Settings, make: Callable[[], LatencyTable]) -> LatencyTable:
        """Return a latency table: one for the machine, and one for each method and budget."""
        measured = "target" in settings
        stage = self.run.store.run(
            "3-latency" if measured else f"3-latency-{self.label}",
            lambda folder: write_text(folder / "latency.json", make().to_json()),
            *(self._model if measured else [*self._model, *self._data]),
            _shapes(self.run.example),
            dict(settings),
            by_content=True,
        )
        return LatencyTable.from_json(stage.file("latency.json").read_text("utf-8"))

    def plan(self, settings: Settings, make: Callable[[], Plan]) -> Plan:
        """Return the plan of one step; the last one replaces the plan of an earlier budget."""
        own = self.own_plan and settings["last"]
        stage = self._keep(
            "3-plan" if own else "3-step",
            lambda folder: write_text(folder / "plan.json", make().to_json()),
            settings,
            by_content=not own,
        )
        return Plan.from_json(stage.file("plan.json").read_text("utf-8"))

    def model(self, settings: Settings, plan: Plan, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the pruned model, read back from its checkpoint."""

        def write(folder: Path) -> None:
            checkpoint.save(make(), plan, folder / "model")

        stage = self._keep("4-pruned", write, {**settings, "plan": sha256(plan.to_json())}, by_content=False)
        return checkpoint.load(stage.file("model"), self.run.fresh_model).to(self.run.device)

    def _keep(self, name: str, write: Callable[[Path], Any], settings: Settings, *, by_content: bool = True) -> Stage:
        stage = self.run.store.run(
            f"{name}-{self.label}", write, *self._model, *self._data, dict(settings), by_content=by_content
        )
        self.stages[name] = stage
        return stage


def _shapes(inputs: Any) -> list[Any]:
    """Return the shape of a tensor, or those of all tensors among the inputs."""
    shapes = [list(tensor.shape) for tensor in tensors_in(inputs)]
    return shapes[0] if len(shapes) == 1 else shapes


def folder_name(label: str) -> str:
    """Return a method as part of a folder's name.

    Example:
        >>> from hessprune.lab.memory import folder_name
        >>> folder_name("hap(estimator=hutchinson,precision=bf16)")
        'hap-estimator-hutchinson-precision-bf16'
    """
    return re.sub(r"[^\w.-]+", "-", label).strip("-")
