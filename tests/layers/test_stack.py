"""Stacks are found, and their blocks compute alone what they compute inside the model."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model
from hessprune.layers.chains import find_stack
from tests.test_language_models import inputs_of, language_model


class Block(nn.Module):
    """A residual block that returns a tuple, and reads a factor beside its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor, *, factor: Tensor, more: Tensor | None = None) -> tuple[Tensor, Tensor]:
        new = x + factor * self.second(torch.relu(self.first(x)))
        return new if more is None else new + more, self.first(x)


class Tower(nn.Module):
    """Three blocks; with `leaks`, each reads the second output of the one before it, too."""

    def __init__(self, *, leaks: bool = False, shares: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks, self.head = nn.Linear(3, 8), nn.ModuleList(Block(8) for _ in range(3)), nn.Linear(8, 2)
        self.leaks = leaks
        if shares:
            self.blocks[2].first.weight = self.blocks[0].first.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden, more, factor = self.stem(x), None, x.mean(1, keepdim=True)
        for block in self.blocks:
            hidden, inner = block(hidden, factor=factor, more=more)
            more = inner if self.leaks else None
        return self.head(hidden)


@torch.no_grad()
def run_apart(model: nn.Module, inputs: object) -> Tensor:
    """Return the output of the last block, each block run as a model of its own."""
    stack = find_stack(model, inputs)
    hidden, readings = stack.read(model, inputs)
    for stage, reading in zip(stack.stages(model), readings, strict=True):
        hidden = stage(hidden, reading)
    return hidden


@torch.no_grad()
def run_inside(model: nn.Module, inputs: object, last: str) -> Tensor:
    """Return the output of a module in a forward of the whole model."""
    seen: list[Tensor] = []
    hook = model.get_submodule(last).register_forward_hook(
        lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    call_model(model, inputs)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Gemma2", "Mamba"])
def test_blocks_of_decoders_compute_alone_what_they_compute_inside(name: str) -> None:
    model, inputs = language_model(name), inputs_of(name, batch=3)
    names = find_stack(model, inputs).names
    assert len(names) == 2
    assert torch.equal(run_apart(model, inputs), run_inside(model, inputs, names[-1]))


def test_a_padding_mask_reaches_every_block() -> None:
    model, inputs = language_model("Llama"), inputs_of("Llama", batch=3)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][1, 5:] = 0
    last = find_stack(model, inputs).names[-1]
    assert torch.equal(run_apart(model, inputs), run_inside(model, inputs, last))


def test_blocks_may_return_tuples_and_read_other_arguments() -> None:
    model, x = Tower().eval(), torch.randn(4, 3)
    stack = find_stack(model, x)
    assert stack.names == ("blocks.0", "blocks.1", "blocks.2")
    assert torch.equal(run_apart(model, x), run_inside(model, x, "blocks.2"))
    assert next(name for name, _ in stack.stages(model)[1].named_parameters()) == "blocks.1.first.weight"


def test_the_model_is_left_as_it_was() -> None:
    model, x = Tower().train(), torch.randn(4, 3)
    before = model(x)
    find_stack(model, x).read(model, x)
    assert model.training
    assert torch.equal(model(x), before)
    assert all("forward" not in vars(module) for module in model.modules())
