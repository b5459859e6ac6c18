import logging
import warnings

import pytest
import torch
from torch import nn

from hessprune.deploy import export
from hessprune.deploy.axes import Axes
from hessprune.deploy.export import export_onnx
from hessprune.deploy.onnx_model import OnnxModel, onnx_feed, onnx_session
from hessprune.errors import (
    ArgumentError,
    DataError,
    MissingDependencyError,
    OutputError,
    UnsupportedModelError,
    VerificationError,
)
from hessprune.foundation import checks as _checks
from hessprune.foundation.quiet import CHATTY_LOGGERS
from hessprune.latency.measure import compare_latency

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def _trained() -> nn.Sequential:
    """Statistics and affine parameters that a wrong folding of BatchNorm would show."""
    model = _net().train()
    model(torch.randn(16, 3, 8, 8) * 3 + 1)
    nn.init.uniform_(model[1].weight)
    nn.init.normal_(model[1].bias)
    return model


def _run(path, inputs) -> torch.Tensor:
    session = onnx_session(path)
    return torch.from_numpy(session.run(None, onnx_feed(session, inputs))[0])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OutputError, match=rf"output must be a file, got the folder '{tmp_path}'"):
        export_onnx(_net(), torch.zeros(1, 3, 8, 8), tmp_path)


def test_a_batch_of_one_exports_for_any_batch_size_and_silently(tmp_path, capfd, caplog):
    model = _trained().train()
    levels = [logging.getLogger(name).level for name in CHATTY_LOGGERS]
    example = torch.randn(1, 3, 8, 8)
    filters, state = list(warnings.filters), torch.get_rng_state()
    path = export_onnx(model, example, tmp_path / "new" / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert [logging.getLogger(name).level for name in CHATTY_LOGGERS] == levels
    assert warnings.filters == filters
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    model.eval()
    for batch_size in (1, 2, 7):
        inputs = torch.randn(batch_size, 3, 8, 8)
        assert torch.allclose(_run(path, inputs), model(inputs), atol=1e-5)


def test_weights_are_stored_once_and_no_source_path_at_all(tmp_path):
    first = nn.Linear(64, 64)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), first, nn.ReLU(), first)
    path = export_onnx(model, torch.randn(2, 64), tmp_path / "model.onnx")
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    assert num_bytes < path.stat().st_size < 1.1 * num_bytes
    assert b".py" not in path.read_bytes()
    graph = onnx.load(path).graph
    assert [value.name for value in graph.output] == ["logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_fixed_batch_stays_fixed(tmp_path):
    path = export_onnx(_net(), torch.randn(1, 3, 8, 8), tmp_path / "model.onnx", dynamic_batch=False)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, scale, offset=None):
        logits = self.linear(x) * scale
        return {"logits": logits if offset is None else logits + offset, "squared": logits.square()}


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_several_inputs_and_outputs(tmp_path, kind):
    torch.manual_seed(0)
    x, scale, offset = torch.randn(2, 4), torch.rand(2, 1), torch.randn(3)  # the last one holds no row per sample
    inputs = (x, scale, offset) if kind == "tuple" else {"scale": scale, "offset": offset, "x": x}
    model = TwoInputs()
    path = export_onnx(model, inputs, tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    assert {value.name for value in graph.input} == {"x", "scale", "offset"}
    assert torch.allclose(_run(path, inputs), model(x, scale, offset)["logits"], atol=1e-6)


def test_an_exported_file_is_timed_beside_its_model(tmp_path):
    inputs = torch.randn(2, 3, 8, 8)
    path = export_onnx(_net(), inputs, tmp_path / "model.onnx", check=False)
    result = compare_latency({"torch": _net(), "onnx": path}, inputs, repeats=3)
    assert [result[name].runtime for name in ("torch", "onnx")] == ["torch", "onnxruntime"]
    with pytest.raises(DataError, match=r"must hold 1 tensors \(input\), got 2"):
        compare_latency({"onnx": path}, (inputs, inputs))


class Drifting(nn.Linear):
    """Returns something else on each call, as a model with hidden state does."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


def test_a_file_that_disagrees_never_replaces_a_good_one(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("good")
    with pytest.raises(VerificationError, match=r"within 0.0001 of its scale, got a difference of .* for a batch of"):
        export_onnx(Drifting(4, 2), torch.randn(2, 4), path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["good"]


def test_disagreement_in_shape_or_by_nan_is_named():
    with pytest.raises(VerificationError, match=r"got shape \(2,\) for \(3,\) for a batch of 4"):
        export._check_close(torch.zeros(2), torch.zeros(3), 4, 1e-4)
    with pytest.raises(VerificationError, match="got a difference of nan"):
        export._check_close(torch.tensor([float("nan")]), torch.zeros(1), 4, 1e-4)
    assert export._check_close(torch.ones(2), torch.ones(2) * 1.00005, 4, 1e-4) is None


def test_a_batch_size_that_the_file_cannot_run_is_named(tmp_path, monkeypatch):
    fixed = export_onnx(_net(), torch.randn(2, 3, 8, 8), tmp_path / "fixed.onnx", dynamic_batch=False, check=False)
    with pytest.raises(VerificationError, match=r"must run a batch of 1, got: .*Pass dynamic_batch=False"):
        export._compare(_net().eval(), fixed, torch.randn(2, 3, 8, 8), Axes(), 1e-4)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 8)


class Untranslatable(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (
            Branching(),
            torch.randn(2, 4),
            "must be capturable by torch.export with any batch size, got: .*data-dependent",
        ),
        (Fixed(), torch.randn(2, 8), r"got: .*Remove .* or pass dynamic_batch=False"),
        (Untranslatable(), torch.randn(2, 4, 4), "`model` must have an ONNX counterpart, got: "),
    ],
)
def test_models_that_cannot_be_exported_are_named(tmp_path, model, inputs, message):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        export_onnx(model, inputs, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_remedy_names_only_what_is_left_to_do(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"by torch.export, got: .* from its forward\.$"):
        export_onnx(Branching(), torch.randn(2, 4), tmp_path / "model.onnx", dynamic_batch=False)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(DataError, match=r"inputs in `example_inputs` must fit the model, got float32 \(2, 1, 8, 8\)"):
        export_onnx(_net(), torch.randn(2, 1, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(ArgumentError, match="`tolerance` must be a number of at least 0"):
        export_onnx(_net(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx", tolerance=-1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="output must be writable"):
        export_onnx(_net(), torch.randn(2, 3, 8, 8), tmp_path / "file" / "model.onnx")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def absent(module):
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(_checks.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"`onnx` is needed .*pip install 'hessprune\[export\]'"):
        export_onnx(_net(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")


def test_large_weights_go_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_INLINE_BYTES", 100)
    model = nn.Linear(64, 32)
    path = export_onnx(model, torch.randn(2, 64), tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    inputs = torch.randn(3, 64)
    assert torch.allclose(_run(path, inputs), model(inputs), atol=1e-5)


def test_a_precision_that_the_runtime_lacks_is_named_with_the_remedy(tmp_path):
    for dtype in (torch.bfloat16, torch.float64):
        net, x = _net().to(dtype), torch.randn(2, 3, 6, 6).to(dtype)
        named = str(dtype).removeprefix("torch.")
        with pytest.raises(UnsupportedModelError, match=rf"ONNX Runtime runs, got {named} .*Call model.float\(\)"):
            export_onnx(net, x, tmp_path / "model.onnx")
        export_onnx(net.float(), x.float(), tmp_path / "model.onnx")


def test_half_precision_is_compared_at_its_own_tolerance(tmp_path):
    assert export_onnx(_net().half(), torch.randn(2, 3, 6, 6).half(), tmp_path / "model.onnx").exists()


class Positions(nn.Module):
    """Tokens with positions, of which there are 16."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(16, 4), nn.Linear(4, 2)

    def forward(self, ids, mask, scale):
        x = self.tokens(ids) + self.places(torch.arange(16)[: ids.shape[1]])
        return self.head((x * mask[..., None]).sum(1) * scale)


def test_sequences_of_any_length_are_accepted_by_name(tmp_path):
    torch.manual_seed(0)
    model = Positions().eval()
    example = {"ids": torch.randint(0, 9, (2, 6)), "mask": torch.ones(2, 6), "scale": torch.ones(1)}
    path = export_onnx(model, example, tmp_path / "model.onnx", dynamic_length=True)
    assert [node.shape for node in onnx_session(path).get_inputs()] == [["batch", "length"], ["batch", "length"], [1]]
    other = {"scale": torch.tensor([2.0]), "mask": torch.ones(5, 16), "ids": torch.randint(0, 9, (5, 16))}
    torch.testing.assert_close(OnnxModel(path)(**other), model(**other))


def test_only_the_length_may_be_free(tmp_path):
    example = {"ids": torch.randint(0, 9, (2, 6)), "mask": torch.ones(2, 6), "scale": torch.ones(1)}
    path = export_onnx(Positions(), example, tmp_path / "m.onnx", dynamic_batch=False, dynamic_length=True)
    assert next(node.shape for node in onnx_session(path).get_inputs()) == [2, "length"]


def test_a_length_that_the_forward_fixes_is_refused_by_name(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(-1, 12)

    with pytest.raises(UnsupportedModelError, match=r"or pass dynamic_batch=False or dynamic_length=False\."):
        export_onnx(Fixed(), torch.randn(2, 12), tmp_path / "m.onnx", dynamic_length=True)


class Edges(nn.Module):
    """A layer of a graph network; edges hold numbers of nodes, in any order of the arguments."""

    def __init__(self, *, swapped: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.swapped = nn.Linear(6, 8), nn.Linear(8, 2), swapped

    def forward(self, x, edges):
        x, edges = (edges, x) if self.swapped else (x, edges)
        h = self.first(x)
        return self.last(torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]]).relu())


def test_a_graph_is_not_cut_to_fewer_nodes_than_its_edges_name(tmp_path):
    torch.manual_seed(0)
    x, edges = torch.randn(12, 6), torch.randint(0, 12, (2, 30))
    model = Edges().eval()
    path = export_onnx(model, (x, edges), tmp_path / "graph.onnx")
    more = torch.randn(15, 6)
    torch.testing.assert_close(OnnxModel(path)(more, edges), model(more, edges))
    with pytest.raises(
        UnsupportedModelError, match=r"must run a batch of 1, got: IndexError.*Pass dynamic_batch=False"
    ):
        export_onnx(Edges(swapped=True), (edges, x), tmp_path / "edges.onnx")
    assert export_onnx(Edges(swapped=True), (edges, x), tmp_path / "edges.onnx", dynamic_batch=False).exists()
