"""Groups of networks with a coupling that is known by construction."""

import logging

import pytest
import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.structure.find import find_groups
from hessprune.structure.groups import Group, Groups
from tests.cases import (
    ChunkCat,
    Concat,
    ConstantPad,
    Flatten,
    Grouped,
    Norms,
    Plain,
    Residual,
    Shared,
    Shuffle,
    SpatialGate,
    UnequalSplit,
    UnknownOperator,
    image,
    make,
    paper_model,
)


def group_named(groups: Groups, name: str) -> Group:
    return next(group for group in groups if group.name == name)


def owners(group: Group, role: str) -> set[tuple[str, int]]:
    return {(piece.param, piece.dim) for piece in group.slices if piece.role == role}


def reasons(groups: Groups, param: str) -> str:
    return " / ".join(item.reason for item in groups.frozen if item.param == param)


class Pooled(nn.Module):
    """Averages over axes that one sample without a batch does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(x).relu().mean((2, 3)))


def test_torch_logs_nothing_about_an_example_that_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnsupportedModelError, match=r"`example_inputs` must fit .* got shapes \(3, 8, 8\)"):
        find_groups(Pooled(), torch.zeros(3, 8, 8))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class ByAnotherName(nn.Module):
    """Branches on values, in a forward whose first argument is not called `self`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(this, x: torch.Tensor) -> torch.Tensor:  # noqa: N805
        h = this.a(x)
        return this.b(h * 2 if h.max() > 1 else h)


def test_the_class_whose_forward_stops_the_capture_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"but ByAnotherName\.forward \(line \d+ of test_find\.py\) stop"):
        find_groups(ByAnotherName(), torch.zeros(1, 4))


def test_a_residual_stream_is_one_group_with_all_its_producers() -> None:
    group = group_named(find_groups(make(Residual), image()), "stem.0")
    assert owners(group, "producer") == {("stem.0.weight", 0), ("outer.weight", 0), ("wide.0.weight", 0)}
    assert owners(group, "consumer") == {("inner.0.weight", 1), ("wide.0.weight", 1), ("head.weight", 1)}


def test_padded_channels_move_the_module_that_pads() -> None:
    groups = find_groups(make(Residual), image())
    literals = {(item.attribute, sum(item.counts)) for item in group_named(groups, "wide.0").literals}
    assert literals == {("before", 4), ("after", 4)}


def test_channels_padded_in_source_code_are_frozen_by_name() -> None:
    groups = find_groups(make(ConstantPad), image())
    assert [group.name for group in groups] == ["stem.0"]
    assert "padded with a fixed number of channels" in reasons(groups, "wide.0.weight")


def test_concatenation_keeps_each_producer_apart_and_offsets_its_columns() -> None:
    groups = find_groups(make(Concat), image())
    group = group_named(groups, "b.0")
    columns = next(piece for piece in group.slices if piece.param == "head.weight")
    assert columns.index == ((6,), (7,), (8,), (9,), (10,))


def test_halves_of_a_chunk_lose_the_same_positions() -> None:
    group = group_named(find_groups(make(ChunkCat), image()), "split.0")
    rows = next(piece for piece in group.slices if piece.param == "split.0.weight")
    assert rows.index == tuple((u, u + 6) for u in range(6))


def test_fixed_split_sizes_are_frozen_by_name() -> None:
    groups = find_groups(make(UnequalSplit), image())
    assert "parts of fixed, unequal size" in reasons(groups, "split.0.weight")


def test_many_groups_go_as_a_whole_and_few_groups_by_position() -> None:
    groups = find_groups(make(Grouped), image())
    assert group_named(groups, "a.0").num_units == 8
    assert group_named(groups, "a.0").literals[0].attribute == "groups"
    assert len(group_named(groups, "few.0").slices[0].index[0]) == 2


def test_a_shuffle_ties_the_same_position_of_its_groups() -> None:
    group = group_named(find_groups(make(Shuffle), image()), "first.0")
    rows = next(piece for piece in group.slices if piece.param == "first.0.weight")
    assert rows.index == tuple((u, u + 6) for u in range(6))


def test_a_spatial_gate_stays_while_what_it_scales_may_go() -> None:
    groups = find_groups(make(SpatialGate), image())
    assert {group.name for group in groups} == {"body.0", "last.0"}
    assert "spread over several units" in reasons(groups, "gate.weight")


def test_norms_follow_couple_or_freeze() -> None:
    groups = find_groups(make(Norms), image())
    assert group_named(groups, "a").literals[0].attribute == "num_groups"
    assert group_named(groups, "a").num_units == 4
    assert "normalised together in module 'layer'" in reasons(groups, "c.weight")


def test_flatten_gives_each_channel_its_columns() -> None:
    group = group_named(find_groups(make(Flatten), image()), "conv")
    columns = next(piece for piece in group.slices if piece.param == "hidden.weight")
    assert columns.index[1] == tuple(range(9, 18))


def test_shared_modules_and_parameters_appear_once() -> None:
    groups = find_groups(make(Shared), image())
    stem = group_named(groups, "stem.0")
    assert {("twice.weight", 0), ("twice.weight", 1)} <= {(piece.param, piece.dim) for piece in stem.slices}
    assert not any(piece.param == "right.weight" for group in groups for piece in group.slices)


def test_unknown_operators_freeze_by_name() -> None:
    groups = find_groups(make(UnknownOperator), image())
    assert [group.name for group in groups] == ["a.0"]
    assert "operator 'fft_fft' has no rule" in reasons(groups, "b.0.weight")


def test_zero_padded_resnet_has_one_group_per_stage_and_block() -> None:
    model, x = paper_model("resnet20")
    groups = find_groups(model, x)
    assert [group.num_units for group in groups if "conv2" in group.name or group.name == "conv1"] == [16, 16, 32]
    assert len(groups) == 12


@pytest.mark.parametrize("entry", ["body.1*", "body.1.0"])
def test_ignore_by_name_pattern(entry: str) -> None:
    groups = find_groups(make(Plain), image(), ignore=[entry])
    assert {group.name for group in groups} == {"body.0.0", "body.2.0"}
    assert "ignored on request" in reasons(groups, "body.1.0.weight")


def test_ignore_by_module_and_by_type() -> None:
    model = make(Plain)
    assert {group.name for group in find_groups(model, image(), ignore=[model.body[2]])} == {"body.0.0", "body.1.0"}
    with pytest.raises(UnsupportedModelError, match="ignored on request"):
        find_groups(model, image(), ignore=[nn.Conv2d])


def test_ignore_must_match_something() -> None:
    with pytest.raises(ArgumentError, match="must name modules of the model, got 'bodi'"):
        find_groups(make(Plain), image(), ignore=["bodi"])


def test_nothing_to_prune_says_why() -> None:
    with pytest.raises(UnsupportedModelError, match="found none: it meets the model's input"):
        find_groups(nn.Linear(3, 2), torch.zeros(1, 3))


def test_wrong_inputs_name_the_shapes() -> None:
    with pytest.raises(UnsupportedModelError, match=r"must fit the model's forward, got shapes \(1, 5\)"):
        find_groups(nn.Linear(3, 2), torch.zeros(1, 5))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


def test_data_dependent_control_flow_is_refused_with_its_place() -> None:
    with pytest.raises(UnsupportedModelError, match=r"DataDependent.forward \(line \d+ of test_find.py\)"):
        find_groups(DataDependent(), torch.ones(1, 3))


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).view(-1, 5 * 16))


def test_a_size_fixed_in_source_code_freezes_only_what_it_touches() -> None:
    groups = find_groups(make(FixedView), image())
    assert [group.name for group in groups] == ["a"]
    assert "the source code fixes its size" in reasons(groups, "b.weight")


def test_the_model_is_left_as_it_was() -> None:
    model = make(Plain).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_groups(model, image())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dict_and_tuple_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(torch.relu(self.left(a) + self.right(b)))

    a, b = torch.zeros(1, 3), torch.zeros(1, 4)
    for inputs in ((a, b), {"a": a, "b": b}):
        groups = find_groups(Two(), inputs)
        assert owners(groups[0], "producer") == {("left.weight", 0), ("right.weight", 0)}


class Places(nn.Module):
    """BatchNorm, which counts its batches, and an index that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)
        self.register_buffer("places", torch.arange(6))

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        return self.head((x[:, :6] + self.table(self.places)).mean(1))


def test_groups_of_a_model_without_numbers_are_those_of_the_model():
    found, expected = (find_groups(model, torch.zeros(1, 3, 8, 8)) for model in (Places().to("meta"), Places()))
    assert [(group.name, group.num_units) for group in found] == [("conv", 8)]
    assert [group.slices for group in found] == [group.slices for group in expected]


@pytest.mark.parametrize("as_entry", [lambda net: "10", lambda net: net[10], lambda net: nn.Bilinear])
def test_a_single_entry_of_ignore_needs_no_tuple(as_entry) -> None:
    layers = [part for _ in range(6) for part in (nn.Linear(4, 4), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(4, 2))
    entry = as_entry(net)
    if isinstance(entry, type):
        with pytest.raises(ArgumentError, match="`ignore` must name modules"):
            find_groups(net, torch.zeros(1, 4), ignore=entry)
        return
    names = {group.name for group in find_groups(net, torch.zeros(1, 4), ignore=entry)}
    assert names == {"0", "2", "4", "6", "8"}
    assert find_groups(net, torch.zeros(1, 4), units={"neurons"})
