"""Batches in the forms that users have: a dict as the one argument of a forward, graphs, single samples."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hessprune as hp
from hessprune.errors import DataError, UnsupportedModelError
from hessprune.foundation.quiet import quiet
from hessprune.objectives.choice import choose_objective
from hessprune.objectives.judging import mean_loss

HALF = hp.Budget(macs=0.5)


class Lit(nn.Module):
    """A model that takes the whole batch, as one of Lightning may."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.net(batch["x"])}


def lit() -> Lit:
    torch.manual_seed(0)
    return Lit()


def test_a_dict_is_the_argument_of_a_forward_that_takes_it_whole() -> None:
    x = torch.randn(16, 8)
    forms = {
        "alone": ({"x": x}, [{"x": x}]),
        "in a tuple": (({"x": x},), [({"x": x},)]),
        "of a pair": (({"x": x},), [(({"x": x},), None)]),
        "compiled": ({"x": x}, [{"x": x}]),
    }
    removed = {}
    for name, (example, batches) in forms.items():
        model = torch.compile(lit(), backend="eager") if name == "compiled" else lit()
        removed[name] = hp.prune(model, example, batches, budget=HALF).plan.removed
    assert removed["alone"]["net.0"]
    assert all(each == removed["alone"] for each in removed.values())


def test_a_dict_as_the_argument_goes_into_integers_and_into_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with quiet():
        pytest.importorskip("torchao")
    batch = {"x": torch.randn(16, 8)}
    int8 = hp.convert_qat(hp.calibrate(hp.prepare_qat(lit(), batch), [batch]))
    assert list(int8.sizes) == [0]
    assert hp.export_onnx(int8, batch, tmp_path / "net.onnx").exists()


def test_a_dict_for_a_forward_of_a_tensor_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"The dict is itself 'input'.*rename its key"):
        hp.find_groups(lit().net, {"x": torch.randn(2, 8)})
    assert len(hp.find_groups(lit().net, {"input": torch.randn(2, 8)})) == 1


class Batch(NamedTuple):
    """Inputs and weights of samples."""

    x: Tensor
    weight: Tensor


class Whole(nn.Module):
    """Takes a named tuple, or a dict that may be absent, or beside other keys."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, batch: Batch) -> Tensor:
        return self.net(batch.x) * batch.weight[:, None]


class Absent(Whole):
    def forward(self, batch: dict[str, Tensor] | None = None) -> Tensor:
        return torch.zeros(1, 3) if batch is None else self.net(batch["x"])


class Open(Whole):
    def forward(self, batch: dict[str, Tensor], **options: bool) -> Tensor:
        return self.net(batch["x"])


@pytest.mark.parametrize("kind", [Whole, Absent, Open])
def test_a_whole_batch_is_one_argument_whatever_its_form(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(16, 8)
    batch = Batch(x, torch.ones(16)) if kind is Whole else {"x": x}
    result = hp.prune(model, batch, [(batch, torch.arange(16) % 3)], budget=HALF)
    same = hp.prune(model.net, x, [(x, torch.arange(16) % 3)], budget=HALF)
    assert [*result.plan.removed.values()] == [*same.plan.removed.values()]
    hp.save(result.model, result.plan, tmp_path)
    torch.testing.assert_close(hp.load(tmp_path, kind)(batch), result.model(batch))


def test_a_part_of_a_named_tuple_that_is_taken_for_a_pair_is_named() -> None:
    batch = Batch(torch.randn(16, 8), torch.ones(16))
    with pytest.raises(DataError, match=r"reads 'x' of a tensor.*yield \(batch, targets\)"):
        hp.prune(Whole(), batch, [batch], budget=HALF)


class Graph(nn.Module):
    """A network on one graph: rows are nodes."""

    def __init__(self, gather: str = "[]") -> None:
        super().__init__()
        self.up, self.head, self.gather = nn.Linear(6, 32), nn.Linear(32, 3), gather

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        up = self.up(x).relu()
        messages = up[source] if self.gather == "[]" else up.index_select(0, source)
        return self.head(torch.zeros(x.size(0), messages.size(1)).index_add(0, target, messages))


class Graphs(nn.Module):
    """Graphs of one size side by side: rows are graphs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        graphs, nodes = x.shape[:2]
        edges = edges + nodes * torch.arange(graphs, device=x.device).view(-1, 1, 1)
        return self.net(x.flatten(0, 1), edges.transpose(0, 1).flatten(1)).unflatten(0, (-1, nodes))


@pytest.mark.parametrize("gather", ["[]", "index_select"])
def test_one_graph_is_refused_with_the_remedies_that_help(gather: str) -> None:
    torch.manual_seed(0)
    x, edges = torch.randn(8, 20, 6), torch.randint(20, (8, 2, 60))
    net, alone, batch = Graph(gather), (x[0], edges[0]), (x, edges)
    with pytest.raises(DataError, match=r"Rows are samples.*axis of their own.*method='magnitude', compensate=False"):
        hp.prune(net, alone, [alone], budget=HALF)
    assert hp.prune(net, alone, [alone], budget=HALF, method="magnitude", compensate=False).model.up.out_features < 32
    assert hp.prune(Graphs(net), batch, [batch], budget=HALF).model.net.up.out_features < 32


def test_words_that_an_embedding_lacks_are_no_rows() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up, self.head = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, words: Tensor) -> Tensor:
            return self.head((self.up(x) + self.table(words)).relu())

    good = torch.randn(6, 8), torch.arange(6) % 5
    with pytest.raises(DataError, match=r"in module 'table': index out of range in self. Check size"):
        hp.prune(Both(), good, [(good[0], good[1] + 9)], budget=HALF)


class Unpacking(nn.Module):
    """A network that reads the sizes of its images, as those of timm do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = images()

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        return self.net(x[:, :, :height, :width])


def images() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


@pytest.mark.parametrize("make", [images, Unpacking])
def test_samples_in_the_place_of_batches_are_named(make: Callable[[], nn.Module]) -> None:
    x, y = torch.randn(12, 3, 8, 8), torch.arange(12) % 2
    for batches in (x, TensorDataset(x, y), [x[0], x[1]]):
        for call in (
            lambda batches: hp.prune(make(), x, batches, budget=HALF),
            lambda batches: hp.evaluate(make(), batches),
            lambda batches: hp.calibrate(hp.prepare_qat(make(), x), batches),
        ):
            with pytest.raises(DataError, match=r"batches: DataLoader\(dataset, batch_size=64\), or \[X\]"):
                call(batches)
    for batches in ([x], DataLoader(TensorDataset(x, y), batch_size=4)):
        assert hp.prune(make(), x, batches, budget=HALF).plan.removed
    with pytest.raises(DataError, match=r"to have 3 channels, but got 1 channels instead. Check size"):
        hp.prune(make(), x, [x[:, :1]], budget=HALF)


def test_images_in_bytes_come_with_the_call_that_helps() -> None:
    x = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8)
    for example in (x, x.to(torch.float32)):
        with pytest.raises(
            hp.HessPruneError, match=r"the inputs uint8: pass x.to\(torch.float32\), scaled as in train"
        ):
            hp.prune(images(), example, [x], budget=HALF)
    assert hp.prune(images(), x.to(torch.float32), [x.to(torch.float32) / 255], budget=HALF).plan.removed


class Two(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(self.a(x + y).relu())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_models_tell_inputs_from_targets(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = Two(), torch.randn(16, 8)
    plain = hp.prune(net, (x, x), [(x, -2 * x)], budget=HALF)
    assert hp.prune(wrap(net), (x, x), [(x, -2 * x)], budget=HALF).plan.removed == plain.plan.removed


def test_the_mean_of_weighted_labels_is_that_of_all_batches() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(8, 3), torch.randn(40, 8), torch.arange(40) % 3
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 7.0]))
    whole = loss(net(x), y).item()
    for size in (40, 16, 5, 1):
        batches = list(zip(x.split(size), y.split(size), strict=True))
        assert hp.evaluate(net, batches, loss_fn=loss).loss == pytest.approx(whole, rel=1e-5)
        objective = choose_objective(net, batches, loss)
        assert mean_loss(objective, net, net, batches) == pytest.approx(whole, rel=1e-5)
