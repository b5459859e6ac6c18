"""Progress bars: the lines that stages leave, and the bars that Python draws when asked."""

import re

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.foundation import bars as drawing
from hessprune.foundation.bars import bars
from hessprune.foundation.progress import progress_bar, track

NET = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
BATCHES = [torch.randn(16, 4)]
EXAMPLE = torch.zeros(1, 4)


@pytest.mark.parametrize(("shows", "lines"), [("quiet", 0), ("normal", 0), ("verbose", 2)])
def test_stages_leave_lines_as_asked(shows, lines, capsys):
    with bars(shows):
        for name in ("dense", "measured"):
            with progress_bar(name):
                list(track([1, 2], "inner"))
    assert len(re.findall("✓", capsys.readouterr().err)) == lines


def test_the_name_of_a_stage_is_spoken(capsys):
    with bars("verbose", spoken=str.upper), progress_bar("dense"):
        pass
    assert "✓ DENSE" in capsys.readouterr().err


def test_python_draws_what_the_command_line_draws(capsys):
    with hp.show_progress("verbose"):
        hp.prune(NET, EXAMPLE, BATCHES, budget=hp.Budget(macs=0.5))
    assert "least squares" in capsys.readouterr().err


CALLS = {
    "prune": lambda **given: hp.prune(NET, EXAMPLE, BATCHES, budget=hp.Budget(macs=0.5), **given),
    "measure": lambda **given: hp.measure(NET, EXAMPLE, BATCHES, **given),
    "finetune": lambda **given: hp.finetune(
        NET, [(BATCHES[0], torch.arange(16) % 2)], [(BATCHES[0], torch.arange(16) % 2)],
        config=hp.FinetuneConfig(epochs=1), **given,
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_long_calls_draw_when_asked(call, capsys, monkeypatch):
    monkeypatch.setattr(drawing, "REPORTED_SECONDS", 0.0)
    call()
    assert capsys.readouterr().err == ""
    call(progress=True)
    assert "✓" in capsys.readouterr().err


def test_a_call_within_the_block_draws_no_second_set_of_bars(capsys):
    with hp.show_progress("verbose"), progress_bar("outer"):
        hp.prune(NET, EXAMPLE, BATCHES, budget=hp.Budget(macs=0.5), progress=True)
    assert re.findall("✓ (.*?) ", capsys.readouterr().err) == ["outer"]


def test_progress_is_a_flag():
    with pytest.raises(hp.errors.ArgumentError, match="progress"):
        hp.prune(NET, EXAMPLE, BATCHES, budget=hp.Budget(macs=0.5), progress="yes")
