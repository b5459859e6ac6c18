"""Batches in the forms that users have: a dict as the one argument of a forward."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import UnsupportedModelError
from hessprune.foundation.quiet import quiet

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
