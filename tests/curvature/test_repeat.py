"""A recorded step is trusted only where it repeats what the step itself gave; what a GPU would do, played on a CPU."""

import pytest
import torch

from hessprune.curvature import TraceOptions, block_traces, hutchinson
from hessprune.curvature.repeat import Replayed, own_stream, record_graph, repeated
from tests.curvature.nets import Residual, all_rows, batches_of, build

CPU = torch.device("cpu")


def square(index):
    return torch.stack([index.double() ** 2, -index.double()])


def take(step, number=5):
    return [step(torch.tensor(n)).tolist() for n in range(2, 2 + number)]


def test_the_recording_takes_over_after_one_step():
    seen = []

    def record(step, index):
        return lambda index: (seen.append(int(index)), step(index))[1]

    assert take(Replayed(square, record)) == take(square)
    assert seen == [2, 3, 4, 5, 6]  # the first one is the trial


@pytest.mark.parametrize("failure", ["raises", "differs"])
def test_a_recording_that_fails_is_not_used(failure, caplog):
    def record(step, index):
        if failure == "raises":
            raise RuntimeError("operation not permitted when stream is capturing\nand much more")
        return lambda index: step(index) + 1

    with caplog.at_level("INFO"):
        assert take(Replayed(square, record)) == take(square)
    reason = {
        "raises": "operation not permitted when stream is capturing",
        "differs": "the recording gives other numbers",
    }
    assert [record.message for record in caplog.records] == [f"probes run without a CUDA graph: {reason[failure]}"]


def test_a_step_that_overflows_is_not_recorded(caplog):
    def step(index):
        return torch.tensor([torch.nan if index == 2 else float(index)])

    recorded = []
    replayed = Replayed(step, lambda step, index: (recorded.append(int(index)), step)[1])
    with caplog.at_level("INFO"):
        assert [float(replayed(torch.tensor(n))) for n in (3, 4)] == [3, 4]
        overflowing = Replayed(step, lambda step, index: (recorded.append(int(index)), step)[1])
        assert overflowing(torch.tensor(2)).isnan().all()
    assert recorded == [3]
    assert not caplog.records


def test_a_processor_runs_the_step_itself():
    assert repeated(square, 300, CPU) is square
    assert repeated(square, 2, torch.device("cuda")) is square  # too few to be worth a recording
    assert isinstance(repeated(square, 300, torch.device("cuda")), Replayed)
    with own_stream(CPU):
        pass


def test_recorded_probes_are_the_same_probes(monkeypatch):
    """Every probe depends on the index it is given alone: nothing of the step is decided outside of it."""
    model, batches = build(Residual), batches_of((6,))
    run = {"estimator": "hutchinson", "precision": "fp64", "options": TraceOptions(num_probes=12, chunk_size=4)}
    plain = block_traces(model, all_rows(model), batches, **run)
    places = []

    def record(step, index):
        place = index.clone()
        places.append(place)
        return lambda index: (place.copy_(index), step(place))[1]

    monkeypatch.setattr(hutchinson, "repeated", lambda step, number, device: Replayed(step, record))
    replayed = block_traces(model, all_rows(model), batches, **run)
    assert len(places) == 2  # one recording for each chunk
    for key, probes in plain.probes.items():
        assert torch.equal(replayed.probes[key], probes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_repeats_a_probe(caplog):
    device = torch.device("cuda")
    with own_stream(device):
        step = Replayed(square, record_graph)
        assert [step(torch.tensor(n, device=device)).tolist() for n in range(2, 7)] == take(square)
    model = build(Residual).to(device, torch.float32)
    batches = [(x.float(), y) for x, y in batches_of((6,))]
    with caplog.at_level("INFO"):
        block_traces(model, all_rows(model), batches, estimator="hutchinson", options=TraceOptions(num_probes=20))
    assert "without a CUDA graph" not in caplog.text
