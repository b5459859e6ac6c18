"""Models whose blocks depend on each other, or on the layout of the batch, are refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessprune.errors import DataError, UnsupportedModelError
from hessprune.foundation.trees import tensors_in
from hessprune.layers.chains import find_stack
from tests.layers.test_stack import Tower

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block that a model may hand anything to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.store: list[Any] = []

    def forward(self, x: Tensor, store: Any = None, factor: float = 1.0) -> Tensor:
        hidden = torch.relu(self.first(x))
        more: Any = 0.0
        if isinstance(store, dict):
            more = store.setdefault("first", hidden).mean(-1, keepdim=True)
        if self.store:
            more, self.store[0] = self.store[0], self.store[0] + hidden.mean(-1, keepdim=True)
        return x + factor * self.second(hidden) + more


class Model(nn.Module):
    """Runs three blocks; subclasses do something in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 2)
        self.shift = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = self.after(block(x), number)
        return self.head(x)

    def after(self, x: Tensor, number: int) -> Tensor:
        return x


class AddsInPlace(Model):
    def after(self, x: Tensor, number: int) -> Tensor:
        x += self.shift[number]
        return x


class WritesPlaces(Model):
    def after(self, x: Tensor, number: int) -> Tensor:
        x[:, 0] = self.shift[number, 0]
        return x


class SharesDict(Model):
    def forward(self, x: Tensor) -> Tensor:
        store: dict[str, Tensor] = {}
        for block in self.blocks:
            x = block(x, store)
        return self.head(x)


class ReadsDict(SharesDict):
    """The model itself reads what a block left."""

    def forward(self, x: Tensor) -> Tensor:
        store: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x, store, factor=1.0 if number == 0 else float(store["first"].mean()))
        return self.head(x)


class SharesAttribute(Model):
    def forward(self, x: Tensor) -> Tensor:
        store = [x.new_zeros(len(x), 1)]
        for block in self.blocks:
            block.store = store
        return super().forward(x)


class HandsNumberOn(Model):
    """A number that is no tensor."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, factor=float(x.mean()))
        return self.head(x)


class Stops(Model):
    """Leaves the loop where blocks change little."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            new = block(x)
            if torch.equal(new, x):
                break
            x = new
        return self.head(x)


class SecondFirst(Model):
    """The batch is the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[None].expand(5, *x.shape) + 0).mean(0)


class Frames(Model):
    """Frames of all samples are one batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.repeat_interleave(3, 0)).unflatten(0, (len(x), 3)).mean(1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (AddsInPlace, "'blocks.1' reads other numbers than 'blocks.0' returned: the model changes them in place"),
        (WritesPlaces, "'blocks.1' reads other numbers than 'blocks.0' returned"),
        (SharesDict, "'blocks.1' reads more of another one than its output"),
        (ReadsDict, r"'blocks.0' or one behind it hands more on than its output \(KeyError: 'first'\)"),
        (SharesAttribute, "'blocks.2' (does not run alone|computes something else alone)"),
        (HandsNumberOn, "computes something else alone"),
        (Stops, "'blocks.1' runs or not by what another one computes"),
        (SecondFirst, r"'blocks.0' reads float32 \(5, 1, 8\) for a batch of 1"),
        (Frames, r"'blocks.0' reads float32 \(3, 8\) for a batch of 1"),
    ],
)
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_blocks_that_do_not_stand_alone_are_refused(kind: type[Model], words: str, samples: int) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        find_stack(kind(), X[:samples])
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Leave `sequential` out.")


@pytest.mark.parametrize(("options", "fault"), [({"leaks": True}, "reads more"), ({"shares": True}, "shares weights")])
def test_blocks_that_read_or_share_more_are_refused(options: dict[str, bool], fault: str) -> None:
    with pytest.raises(UnsupportedModelError, match=fault):
        find_stack(Tower(**options), torch.randn(4, 3))


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="must be a stack of blocks"):
        find_stack(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(4, 3))


def test_inputs_that_do_not_fit_are_named_as_elsewhere() -> None:
    with pytest.raises(DataError, match=r"inputs in `batches` must fit the model, got float32 \(2, 9\)"):
        find_stack(Model(), torch.randn(3, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_stacks_are_found_in_any_type_and_mode_and_left_as_they_were(dtype: torch.dtype) -> None:
    model = Model().to(dtype).train()
    before = [tensor.clone() for tensor in tensors_in(model.state_dict())]
    assert find_stack(model, X.to(dtype)).names == ("blocks.0", "blocks.1", "blocks.2")
    assert model.training
    assert all(map(torch.equal, before, tensors_in(model.state_dict())))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
