"""Models, data and calls that the rows of `remedies.py` share."""

import dataclasses
import re
import tempfile
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import remove_parametrizations

import hessprune as hp
from hessprune.curvature.blocks import block_traces
from hessprune.foundation.imports import callable_at
from hessprune.lab.recipe import parse_recipe
from hessprune.training.config import FinetuneConfig
from tests.curvature.nets import all_rows

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
IMAGES = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
BATCHES = [(X, Y)]
HALF = hp.Budget(units=0.5)


class Net(nn.Module):
    """Two layers with a step in between."""

    def __init__(self, step: Callable = F.relu, first: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.f, self.step = first or nn.Linear(4, 8), last or nn.Linear(8, 2), step
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.step(self.a(x)))


class Summed(Net):
    """Two layers that give the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.a(x) + self.b(x))


class Sorting(Net):
    """A net with a layer that reads the samples which begin with a positive number."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, rows = self.a(x), (x[:, 0] > 0).nonzero()[:, 0]
        return self.f(torch.zeros_like(h).index_add(0, rows, self.b(x[rows]).relu()) + h)


class AtMostEight(Net):
    """Two groups; of the first one, the forward uses eight units, or none where there are more."""

    def __init__(self, silent: bool) -> None:
        super().__init__()
        self.silent, self.b, self.g = silent, nn.Linear(4, 8), nn.Linear(8, 2)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        h = h * float(h.shape[1] <= 8) if self.silent else h[:, :8]
        return self.f(h) + self.g(self.b(x))


class Embedded(Net):
    """A group that an embedding emits, and one of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.e(x).mean(1))


class Boxed(Net):
    """Reads a dataclass."""

    def forward(self, box: Any) -> torch.Tensor:  # type: ignore[override]
        return super().forward(box.x)


def boxed() -> Any:
    """Return inputs of a new dataclass, which torch does not know."""
    return dataclasses.make_dataclass("Box", ["x"])(X[:1])


def boxed_plan() -> tuple[hp.Plan, Any]:
    torch.export.register_dataclass(type(box := boxed()))
    return hp.prune(Boxed(), box, [box], budget=HALF, method="magnitude", compensate=False).plan, box


def images(norm: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    norm = norm or nn.Identity()
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()


def noisy(only_training: bool) -> nn.Module:
    net = Net()
    net.step = lambda h: h if only_training and not net.training else h + torch.rand_like(h)
    return net


def scaled(factor: float) -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.f.weight.mul_(factor)
    return net


class Distances(nn.Module):
    """Its loss has no second derivative in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(self.first(x), torch.eye(3, dtype=x.dtype))


def normed() -> nn.Module:
    return Net(first=spectral_norm(nn.Linear(4, 8)), last=spectral_norm(nn.Linear(8, 2)))


def merged(message: str) -> nn.Module:
    """Carry out the calls of a message."""
    net = normed()
    for layer, name in re.findall(r"remove_parametrizations\(model\.(\w+), '(\w+)'\)", message):
        remove_parametrizations(net.get_submodule(layer), name)
    return net


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def lazy(inputs: torch.Tensor | None = None) -> nn.Module:
    net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    if inputs is not None:
        net(inputs)
    return net


def with_lock(removed: bool = False) -> nn.Module:
    net = Net()
    if not removed:
        net.lock = threading.Lock()
    return net


def filled() -> nn.Module:
    net = Net().to("meta").to_empty(device="cpu")
    net.load_state_dict(Net().state_dict())
    return net


class Two(Net):
    """Two outputs by name."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return {"logits": logits, "box": logits.sin(), "like": logits @ logits.T}


NET, CONV, TWO = Net(), images(), Two()
BARE_NORM = partial(nn.BatchNorm2d, 8, track_running_stats=False)
GROUPS = hp.find_groups(NET, X[:1])
SALIENCY = {"a": torch.arange(8.0)}
WORDS = torch.randint(0, 5, (8, 3), generator=torch.Generator().manual_seed(0))


def plan(budget: Any = HALF, groups: Any = GROUPS, saliency: Any = None, **options: Any) -> hp.Plan:
    return hp.make_plan(
        NET, groups, SALIENCY if saliency is None else saliency, budget, example_inputs=X[:1], **options
    )


def score(method: Any = "magnitude", batches: Any = BATCHES, model: nn.Module = NET, **options: Any) -> Any:
    return hp.saliency(model, hp.find_groups(model, X[:1]), batches, method, **options)


class OneStream:
    """Hands out the same iterator each time."""

    def __init__(self) -> None:
        self._iterator = iter(BATCHES * 3)

    def __iter__(self) -> Any:
        return self._iterator


def score_images(model: nn.Module) -> Any:
    return hp.saliency(model, hp.find_groups(model, IMAGES), [(IMAGES, Y[:8])], "hap")


def trace_distances(estimator: str) -> Any:
    model = Distances().double()
    return block_traces(model, all_rows(model), [(X.double(), Y)], estimator=estimator, precision="fp64")


def words(method: Any) -> Any:
    net = Embedded()
    return hp.saliency(net, hp.find_groups(net, WORDS), [(WORDS, Y[:8])], method)


def word_traces(ignore: tuple = ()) -> Any:
    net = Embedded()
    return hp.hessian_trace(net, hp.find_groups(net, WORDS, ignore), [(WORDS, Y[:8])])


def tune(model: nn.Module = NET, train: Any = BATCHES, loss_fn: Any = None, teacher: Any = None, **options: Any) -> Any:
    folder = options.pop("checkpoint_dir", None)
    config = FinetuneConfig(**{"epochs": 1, "lr": 0.01} | options)
    return hp.finetune(model, train, BATCHES, config=config, loss_fn=loss_fn, teacher=teacher, checkpoint_dir=folder)


def prune(**options: Any) -> Any:
    return hp.prune(NET, X[:1], BATCHES, **{"budget": HALF, "method": "magnitude", "compensate": False} | options)


def pruned_in_training(function: Callable) -> nn.Module:
    """Return a model that a callback has pruned before the first step."""
    net = Net()
    hp.PruneCallback(function).on_train_begin(None, SimpleNamespace(global_step=0), None, model=net)
    return net


def interactions(value: Any) -> hp.Saliency:
    return hp.Saliency(SALIENCY, provenance={}, interactions=value)


@cache
def first_plan() -> tuple[hp.Plan, nn.Module]:
    return plan(), hp.apply_plan(NET, plan())


def widening() -> hp.Widening:
    return hp.widen(NET, X[:1], {"a": 9}).plan


@cache
def wider_plan() -> hp.Widening:
    return hp.widen(first_plan()[1], X[:1], {"a": 9}).plan


@cache
def second_plan(ignore_first: bool = False, rows: int = 1) -> hp.Plan:
    model = NET if ignore_first else first_plan()[1]
    groups = hp.find_groups(model, X[:rows])
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    return hp.make_plan(model, groups, saliency, HALF, example_inputs=X[:rows])


@cache
def implanted_plan() -> hp.Plan:
    groups = hp.find_groups(CONV, IMAGES[:1])
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    return hp.make_plan(CONV, groups, saliency, hp.Budget(params=0.8), example_inputs=IMAGES[:1], implant=0.3)


@cache
def prepared() -> Any:
    return hp.prepare_qat(Net(), X[:2])


@cache
def calibrated() -> Any:
    return hp.calibrate(prepared(), BATCHES)


def stuck(folder: str, lr: float) -> Any:
    return tune(lr=lr, checkpoint_dir=folder)


@cache
def folder() -> str:
    return tempfile.mkdtemp()


def recipe(**changes: Any) -> Any:
    return parse_recipe({"model": {"weights": "w"}, "prune": {"budget": {"macs": 0.5}}} | changes)


def advised(message: str, pattern: str) -> str:
    """Return what a message advises."""
    found = re.search(pattern, message)
    assert found, message
    return found[1]


def least(message: str) -> hp.Budget:
    return hp.Budget(macs=float(advised(message, r"at least macs=([\d.]+)\.")))


class Tied(Net):
    """Units that two layers emit together."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(F.relu(self.a(x) + self.b(x)))


def written(text: str, name: str = "recipe.yaml") -> Path:
    path = Path(tempfile.mkdtemp(), name)
    path.write_text(text)
    return path


def build_deep(name: str, depth: int) -> nn.Module:
    return callable_at(f"hessprune.lab.models.{name}", "name")(depth, num_classes=2)
