"""Selections by the numbers of the inputs: the graph keeps the sizes of the example, and units go all the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.structure.capture import capture
from hessprune.structure.real_sizes import has_open_sizes
from tests.networks.check import masked

END = 2
WORDS = torch.randint(3, 9, (40, 6), generator=torch.Generator().manual_seed(0))
WORDS[:, -1] = END


class AtTheEnd(nn.Module):
    """Reads each text where it ends, as BART's classifier does."""

    def __init__(self, *, flat: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.first, self.last = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 4)
        self.flat = flat

    def forward(self, words: Tensor) -> Tensor:
        hidden = F.relu(self.first(self.embedding(words)))
        ends = words.eq(END)
        rows = hidden.flatten(0, 1)[ends.flatten()] if self.flat else hidden[ends, :]
        return self.last(rows.view(hidden.size(0), -1, hidden.size(-1))[:, -1, :])


@pytest.mark.parametrize("flat", [False, True])
def test_units_in_front_of_a_selection_can_go(flat: bool) -> None:
    net = AtTheEnd(flat=flat).double().eval()
    assert not has_open_sizes(capture(net, WORDS[:1]))
    group = next(group for group in hp.find_groups(net, WORDS[:1]) if group.name == "first")
    result = hp.prune(net, WORDS[:1], [WORDS], budget=hp.Budget(params=0.8), compensate=False)
    assert 0 < len(result.plan.removed["first"]) < group.num_units
    expected = masked(net, hp.find_groups(net, WORDS[:1]), result.plan.removed)(WORDS)
    torch.testing.assert_close(result.model(WORDS), expected, rtol=0, atol=1e-10)


def test_branches_that_depend_on_numbers_are_refused_as_before() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if int((x > 0).sum()) > 3 else x

    with pytest.raises(hp.errors.UnsupportedModelError, match="Replace control flow that depends on tensor values"):
        hp.find_groups(Branching(), torch.randn(2, 4))


class Experts(nn.Module):
    """A layer whose rows go to one of two experts each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.gate, self.head = nn.Linear(6, 8), nn.Linear(6, 2), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h, chosen = self.up(x), self.gate(x).argmax(-1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(h[rows]))
        return self.head(out)


def test_experts_are_pruned_where_the_example_reaches_all_of_them() -> None:
    net, x = Experts().double().eval(), torch.randn(64, 6, dtype=torch.float64)
    few = x[[int((net.gate(x).argmax(-1) == 0).nonzero()[0])]]
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"selects nothing\. Pass more samples"):
        hp.find_groups(net, few)
    groups = hp.find_groups(net, x)
    result = hp.prune(net, x, [x], budget=hp.Budget(params=0.6), method="magnitude", compensate=False)
    assert {"up", "experts.0.0", "experts.1.0"} == {group.name for group in groups}
    expected = masked(net, groups, result.plan.removed)(x)
    torch.testing.assert_close(result.model(x), expected, rtol=0, atol=1e-10)


def test_places_to_which_nothing_is_written_need_no_samples() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            mask = x > 0
            mask[torch.where(mask.sum(-1) == 7)] = False
            return self.head(F.relu(self.up(x * mask)))

    x = torch.randn(5, 6)
    assert [group.name for group in hp.find_groups(Masked(), x)] == ["up"]
