"""Recurrent layers, whose weights hold several gates each: they stay whole, and so does what feeds them."""

from typing import Any

from hessprune.operators.call import Call
from hessprune.operators.table import register


def recurrent(call: Call) -> Any:
    """Freeze all that a recurrent layer reads and returns."""
    return call.refuse(f"the recurrent layer '{call.operator}'{call.where} keeps its sizes")


register(
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    labels=recurrent,
)  # fmt: skip
