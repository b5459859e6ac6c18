"""Signs that depend on their coordinates alone, and are fair."""

import torch

from hessprune.curvature.draws import positions, signs


def test_signs_depend_on_their_own_coordinates_alone():
    streams = torch.arange(10)
    whole = signs(3, 1, streams, 100)
    assert whole.shape == (10, 100)
    assert set(whole.unique().tolist()) == {-1, 1}
    assert torch.equal(signs(3, 1, streams[4:6], 70), whole[4:6, :70])
    state = torch.get_rng_state()
    signs(3, 1, streams, 100)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_draws_and_streams_are_independent():
    stream = torch.arange(1)
    base = signs(0, 0, stream, 10_000).double()
    for other in (signs(1, 0, stream, 10_000), signs(0, 1, stream, 10_000), signs(0, 0, stream + 1, 10_000)):
        assert abs(float((base * other).mean())) < 0.05  # 5 standard errors of a fair coin
    many = signs(7, 2, torch.arange(2000), 64).double()
    assert abs(float(many.mean())) < 5 / 128_000**0.5
    assert float(many.mean(0).abs().max()) < 5 / 2000**0.5
    correlation = (many.T @ many / 2000).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5.5 / 2000**0.5


def test_positions_depend_on_their_own_coordinates_and_every_one_is_drawn_equally_often():
    streams = torch.arange(4000)
    whole = positions(3, 1, streams, 6, size=10)
    assert whole.shape == (4000, 6)
    assert bool((whole.diff(dim=1) >= 0).all())
    assert torch.equal(positions(3, 1, streams[7:9], 6, size=10), whole[7:9])
    share = whole.flatten().bincount(minlength=10) / whole.numel()
    assert len(share) == 10
    assert float((share - 0.1).abs().max()) < 5 * (0.1 * 0.9 / whole.numel()) ** 0.5
    for other in (positions(4, 1, streams, 6, size=10), positions(3, 2, streams, 6, size=10)):
        assert 0.2 < float((other == whole).double().mean()) < 0.8
