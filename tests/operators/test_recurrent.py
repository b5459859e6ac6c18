"""Recurrent layers stay whole, by a reason of their own; the layers around them are pruned."""

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp


class Sequences(nn.Module):
    def __init__(self, kind: type[nn.Module], hidden: int = 16) -> None:
        super().__init__()
        self.reader, self.body = nn.Linear(6, 8), kind(8, 5)
        self.up, self.head = (nn.Linear(5, hidden) if hidden else nn.Identity()), nn.Linear(hidden or 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reader(x).relu()
        state = self.body(x) if isinstance(self.body, nn.RNNBase) else self.body(x[:, 0])
        return self.head(self.up(state[0] if isinstance(state, tuple) else state).relu())


KINDS = [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_behind_a_recurrent_layer_go_and_those_in_front_stay(kind: type[nn.Module]) -> None:
    groups = hp.find_groups(Sequences(kind), torch.randn(2, 4, 6))
    assert [group.name for group in groups] == ["up"]
    reasons = {
        item.reason for item in groups.frozen if item.param in ("reader.weight", "body.weight_hh") and not item.dim
    }
    assert all("the recurrent layer '" in reason and "in module 'body' keeps its sizes" in reason for reason in reasons)
    assert reasons


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_recurrent_layers_alone_is_refused_by_name(kind: type[nn.Module]) -> None:
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"recurrent layer '.*keeps its sizes.*behind the rec"):
        hp.find_groups(Sequences(kind, hidden=0), torch.randn(2, 4, 6))
