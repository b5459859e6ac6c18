"""HAP's estimator against a naive transcription with the same probes, and against the truth."""

import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprune.curvature import ParamSlice, TraceOptions, block_traces, lowest
from hessprune.curvature.draws import signs
from hessprune.errors import UnsupportedModelError
from tests.curvature.nets import PIECEWISE, SMOOTH, Residual, all_rows, batches_of, build, weights
from tests.oracles import block_traces_of, dense_hessian

EXACT = {"rtol": 1e-7, "atol": 1e-12}  # Hessian-vector products in float64


def naive_probe(model: nn.Module, batches, seed: int, probe: int, loss_fn=F.cross_entropy):
    """`v ∘ Hv` by differentiating twice through the model as it stands, all samples at once."""
    names = weights(model)
    tensors = [model.get_parameter(name) for name in names]
    v = [
        signs(seed, probe, torch.tensor([zlib.crc32(n.encode())]), p.numel()).view_as(p).double()
        for n, p in zip(names, tensors, strict=True)
    ]
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.autograd.grad(loss_fn(model(inputs), targets), tensors, create_graph=True)
        products = torch.autograd.grad(gradients, tensors, v)
    return {name: a * b for name, a, b in zip(names, v, products, strict=True)}


@pytest.mark.parametrize("name", {**PIECEWISE, **SMOOTH})
def test_every_probe_is_the_naive_one(name):
    model, batches = build({**PIECEWISE, **SMOOTH}[name]), batches_of()
    options = TraceOptions(num_probes=3)
    result = block_traces(
        model, all_rows(model), batches, estimator="hutchinson", precision="fp64", seed=5, options=options
    )
    assert result.kind == "hessian"
    assert result.probes is not None
    for probe in range(3):
        naive = naive_probe(model, batches, 5, probe)
        for weight, product in naive.items():
            for dim in (0, 1):
                expected = block_traces_of(torch.diag(product.flatten()), product.shape, dim)
                torch.testing.assert_close(result.probes[f"{weight}:{dim}"][probe], expected, **EXACT, msg=weight)


@pytest.mark.parametrize("name", ["residual", "in-place", "tokens", "gated"])
def test_output_channels_alone_give_the_same(name):
    """Rows along outputs take the path without weight gradients, and must not differ from the general one."""
    model, batches = build({**PIECEWISE, **SMOOTH}[name]), batches_of()
    both = all_rows(model)
    single = {key: pieces for key, pieces in both.items() if key.endswith(":1" if key.startswith("bare") else ":0")}
    options = TraceOptions(num_probes=2)
    kwargs = {"estimator": "hutchinson", "precision": "fp64", "options": options}
    full, rows = block_traces(model, both, batches, **kwargs), block_traces(model, single, batches, **kwargs)
    for key in single:
        torch.testing.assert_close(rows.values[key], full.values[key], **EXACT, msg=key)


class Hard(nn.Module):
    """A gate that torch cannot differentiate twice, or its formula."""

    def __init__(self, gate):
        super().__init__()
        self.first, self.second, self.gate = nn.Linear(5, 6), nn.Linear(6, 3), gate

    def forward(self, x):
        x = self.first(x * 3)
        return self.second(x * self.gate(x + 0.0))


ATEN = torch.ops.aten
GATES = [nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True), ATEN.hardsigmoid.default, ATEN.hardsigmoid_.default]


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_hard_sigmoids_are_differentiated_twice(gate):
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = [(x, torch.arange(8) % 3)]
    torch.manual_seed(0)
    model = Hard(gate).double().eval()
    written_out = Hard(lambda x: (x + 3).clamp(0, 6) / 6).double().eval()
    written_out.load_state_dict(model.state_dict())
    options = {"estimator": "hutchinson", "precision": "fp64", "options": TraceOptions(num_probes=3)}
    result = block_traces(model, all_rows(model), batches, **options)
    expected = block_traces(written_out, all_rows(written_out), batches, **options)
    for key, values in expected.probes.items():
        torch.testing.assert_close(result.probes[key], values, **EXACT)


def test_what_has_no_second_derivative_is_named():
    class Distances(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(5, 4)

        def forward(self, x):
            return torch.cdist(self.first(x), torch.eye(4, dtype=x.dtype))

    model, batches = Distances().double(), [(torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 4)]
    with pytest.raises(UnsupportedModelError, match=r"no derivative of 'cdist_backward'\. Use method=hp.HAP\(\)"):
        block_traces(model, all_rows(model), batches, estimator="hutchinson", precision="fp64")


def test_the_mean_converges_to_the_true_hessian_of_a_smooth_net():
    model, batches = build(SMOOTH["gated"]), batches_of((4,))
    options = TraceOptions(num_probes=400)
    result = block_traces(model, all_rows(model), batches, estimator="hutchinson", precision="fp64", options=options)
    for weight in weights(model):
        truth = block_traces_of(dense_hessian(model, batches, weight), model.get_parameter(weight).shape, 0)
        error = (result.values[f"{weight}:0"] - truth).abs() / result.standard_error[f"{weight}:0"].clamp(min=1e-12)
        assert float(error.max()) < 5, weight


def test_a_diagonal_hessian_needs_one_probe():
    model = nn.Linear(4, 4, bias=False).double()
    batches = [(torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64))]
    units = {"w": [ParamSlice(param="weight", dim=0, index=torch.arange(4)[:, None])]}
    options = TraceOptions(num_probes=1)
    result = block_traces(
        model, units, batches, estimator="hutchinson", loss_fn=nn.MSELoss(), precision="fp64", options=options
    )
    torch.testing.assert_close(result.values["w"], torch.full((4,), 0.5, dtype=torch.float64))  # 2/(4·4) on 4 entries


def test_results_do_not_depend_on_the_split():
    model = build(Residual)
    whole, parts = batches_of((6,)), [(x, y) for x, y in [batches_of((6,))[0]]]
    x, y = whole[0]
    parts = [(x[:1], y[:1]), (x[1:4], y[1:4]), (x[4:], y[4:])]
    kwargs = {"estimator": "hutchinson", "precision": "fp64"}
    one = block_traces(model, all_rows(model), whole, options=TraceOptions(num_probes=4), **kwargs)
    many = block_traces(model, all_rows(model), parts, options=TraceOptions(num_probes=4, chunk_size=2), **kwargs)
    for key in one.values:
        torch.testing.assert_close(many.probes[key], one.probes[key], **EXACT)


def test_a_probe_that_overflows_is_counted_and_repeated():
    """All probes carry equal weight: the mean is over exactly as many as were asked for, whatever was rejected."""
    from hessprune.curvature import precision as precisions
    from hessprune.curvature.hutchinson import hutchinson_probes
    from hessprune.curvature.problem import Effort, pose

    model, batches = build(Residual).float(), [(x.float(), y) for x, y in batches_of((6,))]
    options = TraceOptions(num_probes=300, tolerance=0.0)
    effort = Effort(estimator="hutchinson", precision="fp32", options=options)
    problem = pose(model, all_rows(model), batches, loss_fn=None, effort=effort)
    truth, _ = hutchinson_probes(problem, range(300), 0)
    half = precisions.Precision(name="fp16", autocast=torch.float16, scale=2.0**24)
    object.__setattr__(problem, "precision", half)
    probes, _ = hutchinson_probes(problem, range(300), 0)
    assert half.num_rejected >= 1
    assert half.scale < 2.0**24
    assert probes.shape == truth.shape
    assert bool(torch.isfinite(probes).all())
    spread = (probes - truth).abs().mean(1) / truth.abs().mean(1)  # one relative error for each probe
    assert float(spread.max()) < 0.05, "some probe was computed with less precision or weight than the others"
    torch.testing.assert_close(probes.mean(0), truth.mean(0), rtol=0.05, atol=0.01 * float(truth.std(0).mean()))


def test_lowest_removes_by_value_per_cost():
    mask = lowest(0.5, {"a": torch.tensor([1.0, 10.0])})({"a": torch.tensor([2.0, 10.0])})
    assert mask["a"].tolist() == [False, False]  # the cheapest per cost is too large for half the cost
