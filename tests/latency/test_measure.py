import time

import pytest
import torch
from torch import nn

from hessprune.errors import ArgumentError, DataError
from hessprune.latency.measure import compare_latency, measure_latency


class Sleeping(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls, self.threads = seconds, 0, 0

    def forward(self, x):
        assert not self.training
        self.calls, self.threads = self.calls + 1, torch.get_num_threads()
        time.sleep(self.seconds)
        return x


def test_the_median_is_that_of_the_timed_calls_and_settings_are_restored():
    model = Sleeping(0.002).train()
    threads = torch.get_num_threads()
    latency = measure_latency(model, torch.zeros(3, 1), num_threads=threads + 1, warmup=2, repeats=5)
    assert 2.0 <= latency.p10_ms <= latency.median_ms <= latency.p90_ms
    assert (latency.num_threads, latency.batch_size, latency.runtime, latency.device) == (
        threads + 1,
        3,
        "torch",
        "cpu",
    )
    assert (model.calls, model.threads) == (1 + 2 + 5, threads + 1)  # one more to check the inputs
    assert model.training
    assert torch.get_num_threads() == threads


def test_models_are_compared_in_turns():
    order = []

    class Noted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            order.append(self.name)
            return x

    compare_latency({"a": Noted("a"), "b": Noted("b")}, torch.zeros(1, 1), warmup=1, repeats=3)
    assert order == ["a", "b"] * 5


def test_models_without_names_are_refused():
    with pytest.raises(ArgumentError, match=r"`models` must be a mapping from names to models, got list\. Write"):
        compare_latency([nn.Identity()], torch.zeros(1, 1))


def test_the_slower_model_reads_slower():
    result = compare_latency({"slow": Sleeping(0.004), "fast": Sleeping(0.001)}, torch.zeros(1, 1), warmup=0, repeats=5)
    assert result["slow"].median_ms > 1.5 * result["fast"].median_ms


def test_one_repeat_has_no_spread():
    latency = measure_latency(nn.Identity(), torch.zeros(1, 1), warmup=0, repeats=1)
    assert latency.p10_ms == latency.median_ms == latency.p90_ms > 0


def test_threads_are_restored_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(DataError, match=r"inputs in `example_inputs` must fit the model, got float32 \(2, 3\)"):
        measure_latency(nn.Linear(4, 2), torch.zeros(2, 3), num_threads=threads + 1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("setting", [{"num_threads": 0}, {"warmup": -1}, {"repeats": 0}, {"repeats": 1.5}])
def test_impossible_numbers_are_named(setting):
    with pytest.raises(ArgumentError, match=rf"`{next(iter(setting))}` must be an integer of at least"):
        measure_latency(nn.Identity(), torch.zeros(1, 1), **setting)


def test_a_path_that_is_no_onnx_file_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_text("no protobuf")
    for path in (tmp_path / "absent.onnx", tmp_path / "model.onnx"):
        with pytest.raises(ArgumentError, match=rf"must be a module or an ONNX file, got '.*{path.name}'"):
            measure_latency(path, torch.zeros(1, 1))
