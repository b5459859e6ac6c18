"""Which layers can carry stand-ins: plain convolutions that are called as modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.structure.carriers import obstacle, stand_in_layers
from hessprune.structure.find import find_groups
from tests.cases import Flatten, Grouped, Inverted, Plain, Residual, Shared, Tokens, Transposed, image, make
from tests.structure.nets import ComputedWeights

X = image()


def layers(case: type[nn.Module], rank: int | None = None) -> dict[str, tuple[str, ...]]:
    model = make(case)
    return stand_in_layers(model, find_groups(model, X), X, rank=rank)


def test_kernels_larger_than_one() -> None:
    assert layers(Plain) == {"body.0.0": ("body.0.0",), "body.1.0": ("body.1.0",), "body.2.0": ("body.2.0",)}


def test_coupled_units_name_all_their_layers() -> None:
    assert layers(Residual)["stem.0"] == ("stem.0", "outer", "wide.0")


def test_grouped_depthwise_and_transposed_convolutions_stay_full() -> None:
    assert layers(Grouped) == {}
    assert layers(Inverted) == {"stem.0": ("stem.0",)}
    assert {name for names in layers(Transposed).values() for name in names} == {"down.0", "middle.0"}


def test_a_rank_includes_pointwise_and_linear_layers() -> None:
    assert layers(Flatten, 2) == {"conv": ("conv",), "hidden": ("hidden",)}
    assert layers(Tokens) == {}
    assert "patch" in layers(Tokens, 2)


def test_shared_parameters_and_computed_weights_stay_full() -> None:
    assert layers(Shared, 2).keys() == {"stem.0", "last.0"}  # `left` and `right` share a weight
    assert not {"scaled", "standard", "normed"} & {
        name for names in layers(ComputedWeights, 2).values() for name in names
    }


def test_weights_that_the_forward_takes_by_themselves_stay_full() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(F.conv2d(torch.relu(self.a(x)), self.b.weight)))

    assert layers(Functional) == {"a": ("a",)}


def test_models_that_need_real_numbers_are_watched_with_them() -> None:
    class Scaled(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(len(x.unique()))

    model = make(Scaled)
    groups = find_groups(make(Plain), X)
    assert set(stand_in_layers(model, groups, X)) == {"body.0.0", "body.1.0", "body.2.0"}
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layer", "rank", "reason"),
    [
        (nn.Conv2d(4, 4, 3), None, ""),
        (nn.Conv1d(4, 4, 5, padding="same"), None, ""),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), None, ""),
        (nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"), None, "would read reflect padding"),
        (nn.Conv2d(4, 4, 1), None, "no kernel to shrink: set `rank`"),
        (nn.Linear(4, 4), None, "no kernel to shrink: set `rank`"),
        (nn.Conv2d(4, 4, 1), 2, ""),
        (nn.Linear(4, 4), 2, ""),
        (nn.Conv2d(4, 4, 3, groups=2), 2, "grouped convolution"),
        (nn.ConvTranspose2d(4, 4, 3), None, "it is a ConvTranspose2d"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), None, "it is a ParametrizedConv2d"),
    ],
)
def test_what_stands_in_the_way(layer: nn.Module, rank: int | None, reason: str) -> None:
    answer = obstacle(layer, rank)
    assert reason in answer
    assert bool(answer) == bool(reason)


def test_hooks_stand_in_the_way() -> None:
    layer = nn.Conv2d(4, 4, 3)
    layer.register_forward_pre_hook(lambda *_: None)
    assert obstacle(layer, None) == "it has hooks"
