import pytest
import torch

from hessprune.errors import ArgumentError
from hessprune.lab.context import device_for


def test_auto_takes_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto") == device_for("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_for("auto") == device_for("cuda") == torch.device("cuda")
    assert device_for("cpu") == torch.device("cpu")


def test_an_absent_accelerator_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match=r"`device` must be available, got 'cuda'.*Use cpu or auto"):
        device_for("cuda")
