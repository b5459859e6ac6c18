"""Wrong input is refused by name; precision and memory are what was asked for."""

import gc
import weakref

import pytest
import torch
from torch import nn

from hessprune.curvature import ParamSlice, TraceOptions, Until, block_traces, has_bf16, lowest
from hessprune.curvature.memory import chunk_size
from hessprune.curvature.precision import Precision, resolve
from hessprune.foundation.progress import listening
from hessprune.layers.calls import CallMode
from tests.curvature.nets import Residual, all_rows, batches_of, build

CPU = torch.device("cpu")


def single(model, batches):
    return model.float(), [(x.float(), y) for x, y in batches]


def trace(**changes):
    model = build(Residual)
    arguments = {"slices": all_rows(model), "batches": batches_of()} | changes
    return block_traces(model, arguments.pop("slices"), arguments.pop("batches"), **arguments)


def piece(param="conv1.weight", dim=0, index=((0,), (1,))):
    return {"unit": [ParamSlice(param=param, dim=dim, index=torch.tensor(index))]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "exakt"}, "`estimator` must be one of .* Did you mean 'exact'"),
        ({"precision": "fp8"}, "`precision` must be one of"),
        ({"precision": "fp16"}, "'fp16' on a CPU.*Use precision='bf16'"),
        ({"seed": 0.5}, "`seed` must be an integer"),
        ({"batches": (batch for batch in batches_of())}, "one-shot generator"),
        ({"batches": []}, "at least one"),
        ({"slices": piece("conv1.wieght")}, "Did you mean 'conv1.weight'"),
        ({"slices": piece("bn1.weight")}, "must name weights of convolutions or linear maps, got 'bn1.weight'"),
        (
            {"slices": piece(index=((0,), (6,)))},
            r"positions \(U, m\) along an axis of 'conv1.weight' of shape \(6, 4, 3, 3\)",
        ),
        ({"slices": piece(dim=4)}, "positions"),
        ({"slices": {"unit": []}}, "one common number of units"),
        ({"options": TraceOptions(memory_limit=100)}, "`memory_limit` must hold the activations of one sample"),
    ],
)
def test_wrong_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        trace(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 0}, "`num_probes` must be an integer of at least 1"),
        ({"tolerance": 2.0}, "`tolerance` must be a number from 0 to 1"),
        ({"chunk_size": 0}, "`chunk_size`"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TraceOptions(**options)


def test_wrong_stopping_is_named():
    with pytest.raises(ValueError, match="`confidence` must be"):
        Until(removed=lowest(0.5), confidence=0.1)
    with pytest.raises(ValueError, match="`draws_per_round` must be"):
        Until(removed=lowest(0.5), draws_per_round=1)
    with pytest.raises(ValueError, match="`fraction` must be"):
        lowest(1.5)


def test_outputs_must_be_finite_and_repeatable():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 5 * torch.randn(3)

    units = {"w": [ParamSlice(param="weight", dim=0, index=torch.arange(3)[:, None])]}
    batches = [(torch.ones(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(ArithmeticError, match="must repeat its outputs"):
        block_traces(Noisy(4, 3), units, batches)
    with pytest.raises(ArithmeticError, match="outputs must be finite"):
        block_traces(nn.Linear(4, 3), units, [(torch.full((2, 4), torch.inf), torch.tensor([0, 1]))])
    broken = nn.Linear(4, 3)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(ArithmeticError, match="weights must be finite, got NaN or infinity in 'weight'"):
        block_traces(broken, units, batches)


def test_fp16_scale_falls_until_everything_is_finite():
    half = Precision(name="fp16", autocast=torch.float16, scale=2.0**10)
    seen: list[float] = []

    def overflowing(scale: float) -> torch.Tensor:
        seen.append(scale)
        return torch.tensor(1.0 if scale <= 4 else torch.inf)

    assert float(half.finite(overflowing)) == 1.0
    assert seen == [1024.0, 64.0, 4.0]
    assert half.num_rejected == 2
    assert half.scale == 4.0
    with pytest.raises(ArithmeticError, match="curvature must be finite"):
        half.finite(lambda scale: torch.tensor(torch.nan))
    with pytest.raises(ArithmeticError, match="in fp32"):
        Precision(name="fp32").finite(lambda scale: torch.tensor(torch.inf))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_half_precision_agrees_with_double(dtype, estimator, monkeypatch):
    """What an accelerator would run, emulated: scaled, unscaled and summed in FP32."""
    half = Precision(name="half", autocast=dtype, scale=2.0**10 if dtype == torch.float16 else 1.0)
    model, batches = single(build(Residual), batches_of((16,)))
    truth = block_traces(model, all_rows(model), batches, estimator=estimator, precision="fp64").values
    monkeypatch.setattr("hessprune.curvature.problem.resolve", lambda name, device: half)
    result = block_traces(model, all_rows(model), batches, estimator=estimator).values
    for key, value in truth.items():
        torch.testing.assert_close(result[key], value, rtol=0.1, atol=0.02 * float(value.max()))


def test_bf16_without_kernels_runs_in_single_precision(monkeypatch, caplog):
    monkeypatch.setattr("hessprune.curvature.precision.has_bf16", lambda device: False)
    with caplog.at_level("WARNING"):
        assert resolve("bf16", CPU).name == "fp32"
    assert "no bfloat16 kernels" in caplog.text
    monkeypatch.setattr("hessprune.curvature.precision.has_bf16", lambda device: True)
    assert resolve("bf16", CPU).autocast == torch.bfloat16
    assert isinstance(has_bf16(CPU), bool)
    assert resolve("fp16", torch.device("cuda")).autocast == torch.float16


def test_leaving_out_little_changes_little():
    model, batches = build(Residual), batches_of((16,))
    model.head.weight.data *= 30  # a confident model
    everything = block_traces(model, all_rows(model), batches, precision="fp64", options=TraceOptions(chunk_size=1))
    bounded = block_traces(
        model, all_rows(model), batches, precision="fp64", options=TraceOptions(tolerance=1e-3, chunk_size=1)
    )
    assert 0 < bounded.dropped_mass <= 1e-3
    assert everything.dropped_mass == 0
    assert bounded.num_backwards < everything.num_backwards
    total, kept = (sum(float(v.sum()) for v in r.values.values()) for r in (everything, bounded))
    assert 0 <= 1 - kept / total < 1e-2


@pytest.mark.parametrize("estimator", ["exact", "rademacher", "hutchinson"])
def test_any_memory_limit_that_holds_one_sample_gives_the_same(estimator):
    model, batches = build(Residual), batches_of((5,))
    run = {"estimator": estimator, "precision": "fp64"}
    free = block_traces(model, all_rows(model), batches, options=TraceOptions(num_probes=2), **run)
    limit = next(size for size in range(1000, 10**6, 500) if _fits(model, batches, estimator, size))
    options = TraceOptions(num_probes=2, memory_limit=limit)
    tight = block_traces(model, all_rows(model), batches, options=options, **run)
    assert tight.peak_bytes <= limit < free.peak_bytes
    for key in free.values:
        torch.testing.assert_close(tight.values[key], free.values[key], rtol=1e-8, atol=1e-12)


def test_chunks_fit_the_cache_as_a_whole_and_layer_by_layer():
    free, kind = TraceOptions(), {"device": CPU, "estimator": "rademacher"}
    assert chunk_size(1 << 20, 1 << 10, free, **kind) == 192
    assert chunk_size(1 << 10, 1 << 20, free, **kind) == 8
    assert chunk_size(1 << 30, 1 << 30, free, **kind) == 1  # a chunk stays below about a gigabyte
    assert chunk_size(1 << 10, 1 << 20, TraceOptions(chunk_size=99), **kind) == 99


@pytest.mark.parametrize("estimator", ["exact", "rademacher", "hutchinson"])
def test_the_memory_is_announced_before_the_work(estimator):
    notes: list[tuple[int, str]] = []

    class Listener:
        def start(self, label, total):
            return 0

        def advance(self, handle, steps, note):
            notes.append((steps, note))

        def finish(self, handle):
            pass

    model, batches = build(Residual), batches_of((5, 3))
    with listening(Listener()):
        options = TraceOptions(num_probes=2)
        result = block_traces(model, all_rows(model), batches, estimator=estimator, options=options)
    assert notes == [(0, f"about {result.peak_bytes / 1e6:.0f} MB"), (1, ""), (1, "")]


def _fits(model, batches, estimator, limit) -> bool:
    try:
        options = TraceOptions(memory_limit=limit, num_probes=1)
        block_traces(model, all_rows(model), batches[:1], estimator=estimator, precision="fp64", options=options)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("estimator", ["exact", "rademacher", "hutchinson"])
def test_nothing_is_kept_over_batches(estimator, monkeypatch):
    """The graph of a chunk holds its mode and is held by it; without `close` it waits for the collector."""
    alive: list[weakref.ref] = []
    enter = CallMode.__enter__
    monkeypatch.setattr(CallMode, "__enter__", lambda self: (alive.append(weakref.ref(self)), enter(self))[1])
    model, batches = build(Residual), batches_of((4,) * 3)
    gc.disable()
    try:
        block_traces(model, all_rows(model), batches, estimator=estimator, options=TraceOptions(num_probes=2))
        assert len(alive) >= 3
        assert not any(mode() for mode in alive)
    finally:
        gc.enable()
