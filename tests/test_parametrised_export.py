"""Weights that a parametrisation computes by an operator without a counterpart in ONNX."""

from pathlib import Path

import pytest
import torch
from torch import nn

import hessprune as hp

pytest.importorskip("onnxruntime")


def orthogonal() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    net[0] = nn.utils.parametrizations.orthogonal(net[0])
    return net.eval()


def test_export_names_the_calls_that_merge_the_weights_in_the_dense_model(tmp_path: Path) -> None:
    x, half = torch.randn(16, 6), hp.Budget(params=0.7)
    pruned = hp.prune(orthogonal(), x, [x], budget=half).model
    for model in (orthogonal(), pruned):
        with pytest.raises(hp.errors.UnsupportedModelError, match=r"of the dense model before pruning") as caught:
            hp.export_onnx(model, x, tmp_path / "net.onnx")
    call = str(caught.value).partition("pruning (")[2].partition("), or replace")[0]
    model = orthogonal()
    eval(call, {"model": model, "torch": torch})
    smaller = hp.prune(model, x, [x], budget=half).model
    assert hp.export_onnx(smaller, x, tmp_path / "net.onnx").exists()
