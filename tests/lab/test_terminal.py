import re

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.foundation.progress import progress_bar, track
from hessprune.lab.terminal import show_progress


@pytest.mark.parametrize(("shows", "lines"), [("quiet", 0), ("normal", 0), ("verbose", 2)])
def test_stages_leave_lines_as_asked(shows, lines, capsys):
    with show_progress(shows):
        for name in ("1-dense", "6-measured-dense"):
            with progress_bar(name):
                list(track([1, 2], "inner"))
    assert len(re.findall("✓", capsys.readouterr().err)) == lines


def test_python_draws_what_the_command_line_draws(capsys):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with show_progress("verbose"):
        hp.prune(net, torch.zeros(1, 4), [torch.randn(16, 4)], budget=hp.Budget(macs=0.5))
    assert "least squares" in capsys.readouterr().err
