"""Each layer's own time: of the layers that are called, and in proportion to what they do."""

import torch
from torch import nn

from hessprune.lab.layer_times import layer_times, with_times
from hessprune.lab.report import LayerRow


class Twice(nn.Module):
    """Calls one layer twice, and reads the weight of another without calling it."""

    def __init__(self):
        super().__init__()
        self.big, self.small, self.read = nn.Linear(512, 512), nn.Linear(512, 8), nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(self.small(self.big(self.big(x))), self.read.weight)


def test_layers_are_timed_by_their_own_calls_and_hooks_are_taken_off():
    net = Twice().train()
    found, other = layer_times([net, nn.Sequential(nn.Linear(512, 4))], torch.randn(64, 512), repeats=5)
    assert set(found) == {"big", "small"}
    assert set(other) == {"0"}
    assert found["big"] > found["small"] > 0
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_rows_without_a_time_have_none():
    rows = [LayerRow(name=name, width=(1, 1), macs=(1, 1), params=(1, 1)) for name in ("a", "b")]
    assert [row.ms for row in with_times(rows, {"a": (2.0, 1.0)})] == [(2.0, 1.0), None]
