"""Trees of outputs: names, the axis of samples, and one tensor that can be written back."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import hessprune as hp
from hessprune.objectives.outputs import Outputs, named_outputs


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] = ()


Two = namedtuple("Two", ["left", "right"])


def outputs(samples: int, seed: int = 0) -> dict[str, object]:
    g = torch.Generator().manual_seed(seed)
    return {
        "tensor": torch.randn(samples, 3, generator=g),
        "time first": torch.randn(5, samples, 3, generator=g),
        "rows": torch.randn(samples * 4, 3, generator=g),
        "dict": {"out": torch.randn(samples, 3, generator=g), "aux": [torch.randn(samples, 2, 2, generator=g)]},
        "ordered": OrderedDict(out=torch.randn(samples, 3, generator=g), count=torch.arange(samples)),
        "dataclass": Answer(logits=torch.randn(samples, 3, generator=g)),
        "named tuple": Two(torch.randn(samples, generator=g), (torch.randn(samples, 2, generator=g), None)),
        "constant beside": (torch.randn(samples, 2, generator=g), torch.ones(7)),
    }


NAMES = {
    "tensor": ("output",),
    "time first": ("output",),
    "rows": ("output",),
    "dict": ("out", "aux.0"),
    "ordered": ("out",),
    "dataclass": ("logits",),
    "named tuple": ("left", "right.0"),
    "constant beside": ("0",),
}


@pytest.mark.parametrize("kind", NAMES)
def test_outputs_are_found_read_and_written_back(kind: str) -> None:
    found = Outputs.find(outputs(2)[kind], outputs(1)[kind])
    assert found.names == NAMES[kind]
    whole, other = outputs(4)[kind], outputs(4, seed=1)[kind]
    values = found.read(other, 4)
    assert len(values) == 4
    written = found.written(values, whole, 4)
    assert type(written) is type(other)
    for (name, tensor), (_, expected) in zip(named_outputs(written), named_outputs(other), strict=True):
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("kind", NAMES)
def test_chunks_of_a_batch_are_merged(kind: str) -> None:
    found, whole = Outputs.find(outputs(2)[kind], outputs(1)[kind]), outputs(3)[kind]
    values = found.read(whole, 3)
    chunks = []
    for rows in ([0, 1], [2]):
        chunk = outputs(len(rows), seed=5)[kind]
        chunks.append((found.written(values[rows], chunk, len(rows)), len(rows)))
    merged = found.merged(chunks)
    assert torch.equal(found.read(merged, 3), values)


def test_caches_and_hidden_states_are_left_out() -> None:
    def answer(n: int) -> dict[str, object]:
        hidden = tuple(torch.zeros(n, 4, 2) for _ in range(2))
        return {
            "loss": torch.zeros(n),
            "logits": torch.zeros(n, 4, 3),
            "past_key_values": (hidden,),
            "hidden_states": hidden,
            "encoder_last_hidden_state": torch.zeros(n, 4, 2),
        }

    found = Outputs.find(answer(2), answer(1))
    assert found.counting().names == ("logits",)
    base = Outputs.find({"last_hidden_state": torch.zeros(2, 3)}, {"last_hidden_state": torch.zeros(1, 3)})
    assert base.counting().names == ("last_hidden_state",)


def test_what_is_refused() -> None:
    found = Outputs.find(outputs(2)["dict"], outputs(1)["dict"])
    with pytest.raises(
        hp.errors.ArgumentError, match=r"must name outputs of the model, .*got 'ouz'. Did you mean 'out'"
    ):
        found.only(["ouz"])
    with pytest.raises(
        hp.errors.UnsupportedModelError, match="must return a floating-point tensor with an axis of samples"
    ):
        Outputs.find(torch.zeros(3), torch.zeros(3))
