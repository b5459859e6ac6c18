"""Calls of a captured graph bear the names of the model's own modules."""

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.structure.capture import capture


class Block(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.reader, self.mlp = nn.Linear(8, 8), mlp

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.reader(x).relu()).view(len(x), 8)


class Shared(nn.Module):
    """Blocks with one inner part, run by slices of their list, as decoders of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.layers, self.head = nn.ModuleList(Block(mlp) for _ in range(4)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:2]:
            x = layer(x)
        for layer in self.layers[2:][-1:]:
            x = layer(x)
        return self.head(x)


def test_slices_of_a_list_of_modules_bear_its_names() -> None:
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(16, 8)
    program = capture(model, x)
    stacks = [node.meta["nn_module_stack"] for node in program.graph.nodes if node.op == "call_function"]
    found = {name for stack in stacks for name, _ in stack.values()}
    assert found <= dict(model.named_modules()).keys()
    assert {"layers.0.reader", "layers.1.reader", "layers.3.reader"} <= found
    result = hp.prune(model, x, [x], budget=hp.Budget(macs=0.6))
    assert result.cost_after.macs <= 0.6 * result.cost_before.macs


class Casting(nn.Module):
    """Casts its own layers to the type that they have, as routers of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.a = self.a.to(torch.float32)
        return self.b.to(x.dtype)(self.a(x).relu())


def test_a_forward_may_cast_its_layers_to_the_type_that_they_have() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    result = hp.prune(Casting(), x[:1], [(x, torch.arange(16) % 3)], budget=hp.Budget(macs=0.5))
    assert result.model.a.weight.shape == (4, 6)
    assert Casting().double().b.weight.dtype == torch.float64
