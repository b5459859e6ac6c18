import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.deploy.onnx_model import onnx_feed, onnx_session
from hessprune.errors import VerificationError
from hessprune.foundation.quiet import quiet
from hessprune.quantize.graph import activation_quantizers

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")


class Shares(nn.Module):
    """A linear layer reads shares, which a softmax returns and a reshape moves."""

    def __init__(self, *, moved: bool) -> None:
        super().__init__()
        self.body, self.head, self.moved = nn.Conv2d(3, 12, 3), nn.Linear(12, 5), moved

    def forward(self, x):
        x = self.body(x).mean((2, 3)).softmax(1)
        return self.head(x.reshape(-1, 3, 4).transpose(1, 2).flatten(1) if self.moved else x)


def converted(model, example, data, **settings):
    return hp.convert_qat(hp.calibrate(hp.prepare_qat(model, example, **settings), [data]))


@pytest.mark.parametrize("settings", [{}, {"activations": "symmetric"}], ids=["uint8", "int8"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_softmax_of_small_shares_does_not_overflow(moved, settings, tmp_path):
    torch.manual_seed(0)
    model, data = Shares(moved=moved).eval(), torch.randn(64, 3, 8, 8)
    int8 = converted(model, data[:1], data, **settings)
    session = onnx_session(hp.export_onnx(int8, data[:1], tmp_path / "int8.onnx"))
    theirs = torch.from_numpy(session.run(None, onnx_feed(session, data))[0])
    expected = model(data).detach()
    for found in (int8(data).detach(), theirs):
        assert float((found - expected).abs().max() / expected.abs().max()) < 0.02


def test_the_step_of_shares_stays_in_training_and_follows_the_number_of_entries():
    torch.manual_seed(0)
    data = torch.randn(64, 3, 8, 8)
    ready = hp.calibrate(hp.prepare_qat(Shares(moved=False).eval(), data[:1]), [data])
    ready.train()(data)
    steps = [float(quantizer.calculate_qparams()[0]) for quantizer in activation_quantizers(ready).values()]
    assert min(steps) == pytest.approx(1 / (128 * 12))


def test_the_check_meets_an_overflow_that_the_example_misses(tmp_path, monkeypatch):
    monkeypatch.setattr("hessprune.quantize.quantizer._least_steps", lambda roots: {})
    torch.manual_seed(0)
    model, data = Shares(moved=False).eval(), torch.randn(64, 3, 8, 8)
    int8 = converted(model, data[:1], data)
    with pytest.raises(VerificationError, match="for a batch of 8"):
        hp.export_onnx(int8, data[:1], tmp_path / "int8.onnx")
