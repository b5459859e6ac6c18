import torch

from hessprune.operators.labels import CONSTANT, Labels, along, compact, constant, expanded, varies


def test_ties_are_transitive_and_constants_tie_nothing() -> None:
    labels = Labels()
    a, b, c = labels.new(3), labels.new(3), labels.new(2)
    labels.tie(a, b)
    labels.tie(b[1:], c)
    labels.tie(a[:2], torch.tensor([CONSTANT, CONSTANT]))
    roots = torch.from_numpy(labels.roots())
    assert torch.equal(roots[a], roots[b])
    assert torch.equal(roots[b[1:]], roots[c])
    assert len(roots[a].unique()) == 3


def test_long_chains_resolve_to_the_smallest_label() -> None:
    labels = Labels()
    chain = labels.new(1000)
    order = torch.randperm(999, generator=torch.Generator().manual_seed(0))
    labels.tie(chain[order], chain[order + 1])
    assert set(labels.roots()[chain.numpy()].tolist()) == {int(chain[0])}


def test_frozen_roots_keep_the_first_reason() -> None:
    labels = Labels()
    a = labels.new(2)
    labels.freeze(a[:1], "first")
    labels.freeze(a[:1], "second")
    labels.freeze(torch.tensor([CONSTANT]), "constants cannot be frozen")
    numbers, reasons = labels.frozen()
    assert [reasons[number] if number >= 0 else "" for number in numbers[a]] == ["first", ""]


def test_tie_along_an_axis_keeps_the_other_axes_apart() -> None:
    labels = Labels()
    grid = labels.new(6).view(2, 3)
    labels.tie_along(grid, 0)
    roots = torch.from_numpy(labels.roots())[grid]
    assert torch.equal(roots[0], roots[1])
    assert len(roots[0].unique()) == 3


def test_expanded_stores_only_what_varies() -> None:
    dense = torch.arange(4).view(1, 4, 1, 1).expand(2, 4, 5, 5).contiguous()
    stored = expanded(dense)
    assert torch.equal(stored, dense)
    assert compact(stored)[0].shape == (1, 4, 1, 1)
    assert varies(stored, 1)
    assert not varies(stored, 2)


def test_along_spreads_one_label_per_index() -> None:
    assert torch.equal(along(torch.tensor([7, 8]), 1, (3, 2))[2], torch.tensor([7, 8]))
    assert constant((2, 2)).eq(CONSTANT).all()
