from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import register_dataclass

import hessprune as hp
from hessprune.deploy.onnx_model import OnnxModel
from hessprune.deploy.outputs import structure_of, structured

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

Boxes = namedtuple("Boxes", "corners scores")


@dataclass
class Found:
    loss: torch.Tensor | None
    logits: torch.Tensor
    masks: torch.Tensor


register_dataclass(Found)

FORMS = {
    "tuple": (lambda a, b: (a, b), lambda out: (out[0], out[1])),
    "nested": (lambda a, b: {"all": [b, (a, None)]}, lambda out: (out["all"][1][0], out["all"][0])),
    "named": (lambda a, b: Boxes(a, b), lambda out: (out.corners, out.scores)),
    "unpacked": (lambda a, b: Boxes(a, b), lambda out: tuple(out)),
    "dict": (lambda a, b: OrderedDict(second=b, first=a), lambda out: (out["first"], out["second"])),
    "dataclass": (lambda a, b: Found(None, a, b), lambda out: (out.logits, out.masks)),
    "twice": (lambda a, b: (a, a, b), lambda out: (out[1], out[2])),
}


class Two(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.body, self.one, self.two, self.form = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 4), form

    def forward(self, x):
        h = F.relu(self.body(x))
        return self.form(self.one(h), self.two(h))


@pytest.mark.parametrize("name", FORMS)
def test_a_loss_of_a_file_sees_the_whole_output_as_that_of_the_model_does(name, tmp_path):
    torch.manual_seed(0)
    form, parts = FORMS[name]
    model, batches = Two(form).eval(), [(torch.randn(8, 6), torch.randn(8, 4)) for _ in range(2)]
    path = hp.export_onnx(model, torch.randn(1, 6), tmp_path / "two.onnx")

    def loss(output, targets):
        first, second = parts(output)
        return F.mse_loss(first, targets) + 2 * F.mse_loss(second, targets)

    expected = hp.evaluate(model, batches, loss_fn=loss).loss
    assert hp.evaluate(path, batches, loss_fn=loss).loss == pytest.approx(expected, rel=1e-4)


def test_fields_are_read_as_those_of_the_dataclass(tmp_path):
    model, x = Two(FORMS["dataclass"][0]).eval(), torch.randn(3, 6)
    output = OnnxModel(hp.export_onnx(model, x, tmp_path / "two.onnx"))(x)
    assert output.loss is None
    assert "loss" not in output
    assert output["logits"] is output.logits is output[0]
    labels = model(x).logits.argmax(1)
    assert hp.evaluate(tmp_path / "two.onnx", [(x, labels)]).accuracy == 1.0


def test_a_file_without_the_text_returns_a_tensor_or_a_tuple():
    x = torch.ones(1)
    assert structured("", [x]) is x
    assert structured(structure_of({"a": x}), [x, x]) == (x, x)
