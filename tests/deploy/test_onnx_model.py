import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import DataError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

IMAGES, LABELS = torch.zeros(4, 3, 8, 8), torch.arange(4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return hp.export_onnx(model, torch.randn(2, 3, 8, 8), tmp_path_factory.mktemp("files") / "model.onnx")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(4, 3, 10, 10), r"'input' is float32 \(batch, 3, 8, 8\), got float32 \(4, 3, 10, 10\)\. Resize"),
        (torch.zeros(4, 3, 8), r"got float32 \(4, 3, 8\)\. Resize inputs, or export the file with an example of that"),
        (IMAGES.double(), r"got float64 \(4, 3, 8, 8\)\. Convert inputs: x\.to\(torch\.float32\)"),
        (IMAGES.byte(), r"got uint8 \(4, 3, 8, 8\)\. Convert inputs: x\.to\(torch\.float32\)"),
    ],
)
def test_inputs_that_do_not_fit_a_file_are_named(path, inputs, message, capfd):
    with pytest.raises(DataError, match=message):
        hp.evaluate(path, [(inputs, LABELS)])
    with pytest.raises(DataError, match=message):
        hp.measure_latency(path, inputs)
    assert hp.evaluate(path, [(IMAGES, LABELS)]).num_samples == 4
    assert capfd.readouterr().err == ""


def test_a_batch_that_a_file_does_not_take_is_named(path, tmp_path):
    fixed = hp.export_onnx(nn.Linear(3, 2), torch.zeros(2, 3), tmp_path / "fixed.onnx", dynamic_batch=False)
    with pytest.raises(DataError, match=r"Pass 2 samples, or export the file with dynamic_batch=True\."):
        hp.measure_latency(fixed, torch.zeros(4, 3))
    both = hp.export_onnx(nn.Bilinear(3, 3, 2), (torch.zeros(2, 3), torch.zeros(2, 3)), tmp_path / "both.onnx")
    with pytest.raises(DataError, match=r"is float32 \(batch, 3\), got float32 \(3, 3\)\. Pass 4 samples\."):
        hp.measure_latency(both, (torch.zeros(4, 3), torch.zeros(3, 3)))


def test_numbers_that_a_kernel_refuses_are_one_line(tmp_path, capfd):
    path = hp.export_onnx(nn.Embedding(5, 3), torch.zeros(2, 4).long(), tmp_path / "words.onnx")
    with pytest.raises(DataError, match=r"got \(int64 \(2, 4\)\): indices element out of data bounds, idx=9"):
        hp.evaluate(path, [torch.full((2, 4), 9)], loss_fn=lambda output, targets: output.mean())
    assert capfd.readouterr().err == ""
