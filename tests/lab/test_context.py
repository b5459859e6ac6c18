import pytest
import torch

from hessprune.errors import ArgumentError
from hessprune.lab.context import device_for, open_run
from hessprune.lab.recipe import parse_recipe
from hessprune.lab.stages import dense_model


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


def test_another_forward_of_a_factory_is_another_dense_model(tmp_path, monkeypatch):
    """The weights and the recipe are the same; only a constant of the user's file says another number."""
    (tmp_path / "raising.py").write_text(
        "from torch import nn\nPOWER = 1\nclass Net(nn.Sequential):\n    def forward(self, x):\n"
        "        return super().forward(x) ** POWER\n"
        "def make():\n    return Net(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = {"data": {"calibration_size": 16}, "model": {"name": "raising:make", "pretrain": {"epochs": 0}}}
    settings = parse_recipe(recipe | {"prune": {"budget": {"macs": 0.5}}})
    run = open_run(settings, tmp_path / "out", tmp_path)
    reused = [dense_model(run).stage.reused for _ in range(2)]
    monkeypatch.setattr("raising.POWER", 3)
    assert [*reused, dense_model(run).stage.reused] == [False, True, False]


def test_channels_last_lays_convolutions_out_anew_and_answers_alike(tmp_path):
    recipe = {"prune": {"budget": {"macs": 0.5}}}
    answers = {}
    for last in (False, True):
        model = {"name": "digits-resnet", "pretrain": {"epochs": 0}, "channels_last": last}
        run = open_run(parse_recipe(recipe | {"model": model}), tmp_path, tmp_path)
        built = run.fresh_model().eval()
        kernel = next(p for p in built.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
        assert kernel.is_contiguous(memory_format=torch.channels_last) == last
        x, _ = next(iter(run.batches("test")))
        answers[last] = built(x)
    torch.testing.assert_close(answers[True], answers[False])


def test_other_weights_that_a_factory_reads_are_another_dense_model(tmp_path, monkeypatch):
    (tmp_path / "reading.py").write_text(
        "import torch\nfrom pathlib import Path\nfrom torch import nn\nFILE = Path(__file__).with_name('w.pt')\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
        "    net[0].load_state_dict(torch.load(FILE))\n    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = {"data": {"calibration_size": 16}, "model": {"name": "reading:make", "pretrain": {"epochs": 0}}}
    settings = parse_recipe(recipe | {"prune": {"budget": {"macs": 0.5}}})
    reused = []
    for layer in (first := torch.nn.Conv2d(1, 4, 3), first, torch.nn.Conv2d(1, 4, 3)):
        torch.save(layer.state_dict(), tmp_path / "w.pt")
        reused.append(dense_model(open_run(settings, tmp_path / "out", tmp_path)).stage.reused)
    assert reused == [False, True, False]
