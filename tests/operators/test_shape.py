"""Each family of operators ties, frees and freezes the right units, on networks of the usual kinds."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.costs.budget import Budget
from hessprune.planning.planner import make_plan
from hessprune.structure.find import find_groups
from hessprune.structure.groups import Group, Groups
from hessprune.surgery.apply import apply_plan
from tests.cases import image, make
from tests.structure import layouts, nets


def found(case: type[nn.Module]) -> Groups:
    return find_groups(make(case), image())


def sizes(groups: Groups) -> dict[str, int]:
    return {group.name: group.num_units for group in groups}


def named(groups: Groups, name: str) -> Group:
    return next(group for group in groups if group.name == name)


def width(group: Group, param: str) -> int:
    """Return the number of positions of a parameter in one unit."""
    return next(len(piece.index[0]) for piece in group.slices if piece.param == param)


def reasons(groups: Groups, param: str, dim: int) -> str:
    return " / ".join(item.reason for item in groups.frozen if (item.param, item.dim) == (param, dim))


def test_a_mean_over_channels_freezes_them_but_not_the_bottleneck_of_their_gate() -> None:
    groups = found(nets.ChannelAndSpaceAttention)
    assert sizes(groups) == {"gate.0": 4, "last.0": 6}
    assert reasons(groups, "body.0.weight", 0) == "'mean' reduces over its channels"


def test_stacked_branches_and_their_weights_lose_the_same_channels() -> None:
    groups = found(nets.SelectiveKernel)
    assert sizes(groups) == {"stem.0": 8, "left.0": 10, "squeeze.0": 5, "last.0": 6}
    assert width(named(groups, "left.0"), "right.0.weight") == 1
    assert width(named(groups, "left.0"), "excite.weight") == 2


def test_a_view_that_takes_branches_apart_ties_them() -> None:
    groups = found(nets.SplitAttention)
    assert sizes(groups) == {"stem.0": 4, "split.0": 8, "squeeze": 6}
    assert width(named(groups, "split.0"), "excite.weight") == 2


def test_channels_that_become_space_go_together_however_it_is_written() -> None:
    groups = found(nets.SubPixel)
    assert sizes(groups) == {"stem.0": 8, "up": 6, "mid": 5, "narrow": 8}
    assert width(named(groups, "up"), "up.weight") == 4
    assert width(named(groups, "mid"), "narrow.weight") == 4


def test_computed_weights_freeze_by_name_and_scaled_ones_are_weights() -> None:
    groups = found(nets.ComputedWeights)
    assert sizes(groups) == {"stem.0": 8, "plain": 9, "matrix": 5}
    assert reasons(groups, "standard.bias", 0) == "the convolution's weight is computed, not a parameter"
    assert "_weight_norm' in module 'normed.parametrizations" in reasons(
        groups, "normed.parametrizations.weight.original1", 0
    )


def test_recurrent_layers_stay_by_name() -> None:
    groups = found(nets.Recurrent)
    assert sizes(groups) == {"conv.0": 8, "hidden": 7}
    assert reasons(groups, "embed.weight", 0) == "the recurrent layer 'lstm' in module 'lstm' keeps its sizes"


def test_masks_over_space_leave_channels_free() -> None:
    groups = found(nets.MadeInForward)
    assert sizes(groups) == {"a.0": 8, "b.0": 7}
    assert reasons(groups, "c.0.weight", 0) == "it meets a tensor of integers"


def test_mirrored_channels_go_in_pairs_and_places_named_in_the_source_stay() -> None:
    groups = found(nets.Mirrored)
    assert sizes(groups) == {"a.0": 4}
    assert named(groups, "a.0").slices[0].index == ((0, 7), (1, 6), (2, 5), (3, 4))
    assert reasons(groups, "b.0.weight", 0) == "'roll' names channels by position"
    assert reasons(groups, "c.0.weight", 0) == "'index' names channels by position"


def test_of_a_transformer_heads_go_with_their_biases_and_feed_forward_neurons() -> None:
    groups = found(nets.Transformer)
    assert sizes(groups) == {"qkv": 3, "up": 20}
    assert "normalised together in module 'norm1'" in reasons(groups, "token", 2)
    heads = named(groups, "qkv")
    assert {"qkv.weight", "q_bias", "v_bias", "scores"} <= {piece.param for piece in heads.slices}
    assert {item.attribute for item in heads.literals} == {
        "view(2:3 of 3 to 2:5)[3 of 5]=3",
        "view(2:4 of 4 to 2:3)[2 of 3]=12",
    }


def test_what_holds_no_unit_keeps_its_shape() -> None:
    assert sizes(found(nets.NormalisedMap)) == {"last.0": 6}


def test_contracted_activations_lose_the_same_channels() -> None:
    groups = found(nets.NonLocal)
    assert sizes(groups) == {"stem.0": 8, "theta": 5, "value": 6}
    assert width(named(groups, "theta"), "phi.weight") == 1


def test_einsum_is_a_product() -> None:
    groups = found(nets.Einsum)
    assert sizes(groups) == {"stem.0": 8, "mix": 6, "query": 4, "value": 7, "last": 5}
    first = named(groups, "last").slices[0]
    assert (first.param, first.dim, first.role) == ("last", 1, "producer")


def test_returned_features_keep_their_width() -> None:
    groups = found(nets.ManyOutputs)
    assert sizes(groups) == {"a.0": 8, "c.0": 6}
    assert reasons(groups, "b.0.weight", 0) == "the model returns it"


def test_branches_that_only_training_runs_follow() -> None:
    model = make(nets.Auxiliary)
    groups = find_groups(model, image())
    assert sizes(groups) == {"a.0": 8, "b.0": 6, "side.0": 5}
    saliency = {group.name: torch.arange(group.num_units) for group in groups}
    plan = make_plan(model, groups, saliency, Budget(params=0.4), example_inputs=image())
    logits, side = apply_plan(model, plan).train()(image())
    assert logits.shape == side.shape == (2, 4)


def test_norms_follow_whatever_they_normalise() -> None:
    groups = found(layouts.ManyNorms)
    assert sizes(groups) == {"a": 3, "b": 3, "left": 8, "sequence": 10, "hidden": 7}
    assert [item.attribute for item in named(groups, "b").literals] == ["num_groups"]
    assert width(named(groups, "left"), "shared.running_mean") == 1


def test_grouped_transposed_convolutions_lose_whole_groups() -> None:
    groups = found(layouts.ManyGroupsUp)
    assert sizes(groups) == {"stem.0": 8, "mid": 6}
    assert {item.module for item in named(groups, "stem.0").literals} == {"depthwise", "grouped"}
    assert width(named(groups, "stem.0"), "grouped.weight") == 2


def test_a_channel_owns_its_patches() -> None:
    groups = found(layouts.Patches)
    assert width(named(groups, "stem.0"), "mix.weight") == 4
    assert width(named(groups, "mix"), "mix.weight") == 4


def test_coordinates_are_no_units() -> None:
    groups = found(layouts.Coordinates)
    assert sizes(groups) == {"stem.0": 6, "coord.0": 7, "last.0": 5}
    assert reasons(groups, "coord.0.weight", 1) == "it meets a tensor of fixed size"
    assert reasons(groups, "flow.weight", 0) == "it holds coordinates for 'grid_sampler'"


def test_layers_over_other_axes_stay() -> None:
    groups = found(layouts.OtherAxes)
    assert reasons(groups, "tokens.weight", 0) == "'linear' mixes positions of channels in module 'tokens'"
    assert reasons(groups, "scale", 0) == "it is spread over several units"
    assert reasons(groups, "next.0.weight", 0) == "'conv1d' slides over its channels in module 'slide'"


def test_regions_of_another_mode_are_looked_into() -> None:
    assert sizes(found(layouts.Regions)) == {"stem.0": 8, "last.0": 6}


def test_places_in_space_are_free_and_scores_stay() -> None:
    groups = found(layouts.Extremes)
    assert reasons(groups, "score.weight", 0) == "it holds positions for 'gather'"
    assert {"stem.0", "hidden"} <= set(sizes(groups))


def test_states_that_start_at_zero_follow_their_channels() -> None:
    groups = found(layouts.States)
    assert sizes(groups) == {"into": 8}
    assert len(named(groups, "into").slices) == 7
    assert reasons(groups, "parts.weight", 0) == "it is split into parts of fixed, unequal size"


def test_rows_in_a_computed_order_keep_their_channels() -> None:
    groups = found(layouts.Routed)
    assert sizes(groups) == {"second": 6}
    assert "it holds positions for 'index'" in reasons(groups, "third.weight", 0)


def test_a_parameter_used_in_two_ways_stays() -> None:
    groups = found(layouts.TwoWays)
    assert sizes(groups) == {"hidden": 7}
    assert reasons(groups, "b.weight", 0) == "'b.weight' is used in two different ways"
    assert reasons(groups, "c.weight", 0) == "'bilinear' in module 'pair' mixes its channels"


class TiedWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.out = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.mix(self.words(tokens)))) @ self.words.weight.t()


def test_a_table_tied_to_the_head_keeps_its_rows_and_loses_columns_everywhere() -> None:
    groups = find_groups(TiedWords(), torch.zeros(2, 3, dtype=torch.int64))
    assert sizes(groups) == {"words": 6, "mix": 8}
    roles = {(piece.param, piece.dim) for piece in named(groups, "words").slices}
    assert roles == {("words.weight", 1), ("mix.weight", 1), ("out.weight", 0), ("out.bias", 0)}
    assert reasons(groups, "words.weight", 0) == "its rows are looked up by number"


@pytest.mark.parametrize("layer", [nn.LSTM(3, 4), nn.GRU(3, 4), nn.RNN(3, 4)])
def test_networks_of_recurrent_layers_alone_are_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"found none: .*recurrent layer '(lstm|gru|rnn_tanh)' keeps its sizes"):
        find_groups(layer, torch.zeros(2, 1, 3))


class Folded(nn.Module):
    """Attention whose heads are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, -1, 4).transpose(1, 2).reshape(-1, t, 4) for f in (self.q, self.k, self.v))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.head(x + self.o(y.view(n, -1, t, 4).transpose(1, 2).reshape(n, t, -1))).mean(1)


@pytest.mark.parametrize("samples", [1, 4])
def test_an_axis_of_one_sample_counts_no_heads_that_are_folded_into_it(samples: int) -> None:
    model, x = make(Folded), torch.randn(samples, 5, 16, generator=torch.Generator().manual_seed(0))
    (heads,) = find_groups(model, x.to(next(model.parameters())))
    assert (heads.num_units, heads.literals) == (4, ())
