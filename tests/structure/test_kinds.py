"""Kinds of units: heads of attention, neurons of linear layers, channels of convolutions, embedding widths."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.structure.groups import KINDS
from hessprune.structure.kinds import only
from tests.huggingface import package


class Tiny(nn.Module):
    """A factorised embedding, a block of attention and gated neurons, and a convolution over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(20, 6), nn.Linear(6, 16, bias=False)
        self.qkv, self.out, self.num_heads = nn.Linear(16, 48), nn.Linear(16, 16), 4
        self.gate, self.value, self.down = nn.Linear(16, 10), nn.Linear(16, 10), nn.Linear(10, 16)
        self.conv, self.head = nn.Conv1d(16, 12, 3, padding=1), nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.up(self.table(ids))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.silu(self.gate(x)) * self.value(x))
        return self.head(self.conv(x.transpose(1, 2)).relu().mean(-1))


def tiny() -> tuple[Tiny, Tensor]:
    torch.manual_seed(0)
    return Tiny().eval(), torch.randint(20, (6, 7))


def test_every_group_has_a_kind() -> None:
    model, ids = tiny()
    kinds = {group.name: group.kind for group in hp.find_groups(model, ids)}
    assert kinds == {"table": "embedding", "up": "neurons", "qkv": "heads", "gate": "neurons", "conv": "channels"}
    assert {*kinds.values()} == {*KINDS} - {"qk", "v"}  # those on request alone


def test_heads_of_torchs_own_attention_are_heads() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    groups = hp.find_groups(layer, torch.randn(2, 3, 8))
    assert sorted(group.kind for group in groups) == ["heads", "neurons"]


@pytest.mark.parametrize("kind", ["heads", "neurons", "channels"])
def test_only_units_of_the_kinds_that_were_asked_for_go(kind: str) -> None:
    model, ids = tiny()
    ranking = hp.Ranking(units=(kind,), min_kept_fraction=0.5)
    result = hp.prune(model, ids, [ids], budget=hp.Budget(units=0.7), ranking=ranking)
    kinds = {group.name: group.kind for group in hp.find_groups(model, ids)}
    assert {kinds[name] for name, units in result.plan.removed.items() if units} == {kind}
    assert result.plan.provenance["ranking"]["units"] == [kind]


def test_a_plan_from_all_groups_keeps_the_other_kinds() -> None:
    model, ids = tiny()
    groups = hp.find_groups(model, ids)
    saliency = {group.name: torch.arange(float(group.num_units)) for group in groups}
    plan = hp.make_plan(
        model, groups, saliency, hp.Budget(units=0.95), example_inputs=ids, ranking=hp.Ranking(units=("heads",))
    )
    assert [name for name, units in plan.removed.items() if units] == ["qkv"]


def test_the_kind_goes_through_the_file_of_a_plan() -> None:
    model, ids = tiny()
    plan = hp.prune(model, ids, [ids], budget=hp.Budget(macs=0.8), method="random").plan
    assert [group.kind for group in hp.Plan.from_json(plan.to_json()).groups] == [group.kind for group in plan.groups]
    old = plan.to_json().replace('"kind": "heads"', '"kind": "tails"')
    with pytest.raises(hp.errors.CheckpointError, match="kind 'tails' of group 'qkv'"):
        hp.Plan.from_json(old)


def test_kinds_that_are_not_there_are_refused_by_name() -> None:
    model, ids = tiny()
    with pytest.raises(hp.errors.ArgumentError, match=r"`units` must be a tuple of kinds of units, got 'heads'"):
        hp.Ranking(units="heads")  # pyright: ignore[reportArgumentType]
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(hp.errors.ArgumentError, match=r"got \('heads',\).* some of \('channels',\)"):
        only(hp.find_groups(conv, torch.zeros(1, 3, 8, 8)), ("heads",))
    assert only(hp.find_groups(model, ids), None) == hp.find_groups(model, ids)


def test_the_neurons_of_stacked_experts_are_neurons() -> None:
    transformers = package("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).eval()
    ids = {"input_ids": torch.randint(20, (2, 8))}
    assert {group.kind for group in hp.find_groups(model, ids, units=("heads", "neurons"))} == {"heads", "neurons"}


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_convolutions_of_one_dimension_have_channels(kind: type[nn.Module]) -> None:
    (group,) = hp.find_groups(nn.Sequential(kind(4, 8, 3), nn.ReLU(), kind(8, 4, 3)), torch.randn(2, 4, 9))
    assert group.kind == "channels"
