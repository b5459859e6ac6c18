"""One backward pass per draw: unbiased, honest about its error, independent of how data are cut."""

import pytest
import torch

from hessprune.curvature import TraceOptions, Until, block_traces, lowest
from tests.curvature.nets import SMOOTH, Residual, Tokens, all_rows, batches_of, build

EXACT = {"rtol": 1e-10, "atol": 1e-14}  # the same sums in another order, float64


def flat(by_key) -> torch.Tensor:
    return torch.cat(list(by_key.values()))


@pytest.mark.parametrize(("estimator", "probes"), [("rademacher", 2), ("hutchinson", 4)])
def test_two_hundred_seeds_agree_with_the_exact_trace(estimator, probes):
    model, batches = build(Tokens), batches_of((12,))
    units, options = all_rows(model), TraceOptions(num_probes=probes)
    truth = flat(block_traces(model, units, batches, precision="fp64").values)
    runs = [
        block_traces(model, units, batches, estimator=estimator, precision="fp64", seed=seed, options=options)
        for seed in range(200)
    ]
    values = torch.stack([flat(run.values) for run in runs])
    reported = torch.stack([flat(run.standard_error) for run in runs]).square().mean(0).sqrt()
    spread = values.std(0).clamp(min=1e-12)  # dead units have none
    assert float(((values.mean(0) - truth).abs() / (spread / 200**0.5)).max()) < 5
    assert 0.8 < float((reported / spread).median()) < 1.2
    assert 0.8 < float(reported.square().mean().sqrt() / spread.square().mean().sqrt()) < 1.2


def test_one_draw_reports_the_error_over_samples():
    model, batches = build(Residual), batches_of((6,))
    result = block_traces(model, all_rows(model), batches, estimator="rademacher", options=TraceOptions(num_probes=1))
    assert result.standard_error is not None
    assert result.sample_error is not None
    torch.testing.assert_close(flat(result.standard_error), flat(result.sample_error))
    assert bool((flat(result.standard_error) > 0).any())


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_results_do_not_depend_on_batches_or_chunks(estimator):
    model, (x, y) = build(Residual), batches_of((6,))[0]
    parts = [(x[:1], y[:1]), (x[1:4], y[1:4]), (x[4:], y[4:])]
    one = block_traces(model, all_rows(model), [(x, y)], estimator=estimator, precision="fp64", seed=3)
    many = block_traces(
        model, all_rows(model), parts, estimator=estimator, precision="fp64", seed=3, options=TraceOptions(chunk_size=2)
    )
    torch.testing.assert_close(flat(many.values), flat(one.values), **EXACT)
    torch.testing.assert_close(flat(many.sample_error), flat(one.sample_error), rtol=1e-8, atol=1e-12)


def test_until_stops_early_and_says_when_it_has_not_settled(caplog):
    model, batches = build(Residual), batches_of((24,))
    units = {key: pieces for key, pieces in all_rows(model).items() if key.endswith(":0")}
    easy = TraceOptions(until=Until(removed=lowest(0.5), confidence=0.8))
    result = block_traces(model, units, batches, estimator="rademacher", options=easy)
    assert result.settled is True
    assert result.num_probes < 64
    hard = TraceOptions(until=Until(removed=lowest(0.5), confidence=1.0), num_probes=4)
    with caplog.at_level("WARNING"):
        result = block_traces(model, units, batches, estimator="hutchinson", options=hard)
    assert result.settled is False
    assert "has not settled within 4 probes" in caplog.text
    exact = block_traces(model, units, batches, options=easy)
    assert exact.settled is True


def test_until_removes_what_exact_removes_up_to_the_stated_error():
    """Settled means settled: units that go the other way lie within three errors of the threshold."""
    model, batches = build(Residual), batches_of((48,))
    units = {key: pieces for key, pieces in all_rows(model).items() if key.endswith(":0")}
    truth = block_traces(model, units, batches, precision="fp64").values
    for seed in range(5):
        options = TraceOptions(until=Until(removed=lowest(0.5)), num_probes=512)
        run = {"estimator": "rademacher", "precision": "fp64", "seed": seed}
        result = block_traces(model, units, batches, options=options, **run)
        assert result.settled
        ours, theirs = (flat(lowest(0.5)(values)) for values in (result.values, truth))
        values, errors = flat(result.values), flat(result.standard_error)
        distance = (values - values[ours].max()).abs() / errors.clamp(min=1e-12)
        assert not bool((distance[ours != theirs] > 3).any())


def test_agreement_is_that_of_the_removed_set():
    """One unit of two that moves is half of the set, however many others stay where they are."""
    values = {"a": torch.tensor([0.0, 1.0, 1.01, *[100.0] * 97])}
    errors = {"a": torch.tensor([0.0, 1.0, 1.0, *[0.0] * 97])}
    assert not Until(removed=lowest(0.02), confidence=0.9).settled(values, errors)
    assert Until(removed=lowest(0.02), confidence=0.6).settled(values, errors)
    assert Until(removed=lowest(0.0), confidence=1.0).settled(values, errors)  # nothing goes, whatever the noise


def test_rounds_are_the_same_draws_as_one_round():
    model, batches = build(Residual), batches_of((40,))
    never = Until(removed=lowest(0.5), confidence=1.0)
    run = {"estimator": "rademacher", "precision": "fp64"}
    once = block_traces(model, all_rows(model), batches, options=TraceOptions(num_probes=16), **run)
    rounds = block_traces(model, all_rows(model), batches, options=TraceOptions(num_probes=16, until=never), **run)
    assert rounds.num_probes == 16
    torch.testing.assert_close(flat(rounds.values), flat(once.values), **EXACT)
    ratio = flat(rounds.standard_error).square().sum() / flat(once.standard_error).square().sum()
    assert 0.8 < float(ratio) < 1.25


def test_gauss_newton_is_named(caplog):
    model, batches = build(SMOOTH["gated"]), batches_of((3,))
    assert block_traces(model, all_rows(model), batches, estimator="rademacher").kind == "ggn"
    last = {key: pieces for key, pieces in all_rows(model).items() if key.startswith(("last", "head"))}
    assert block_traces(model, last, batches, estimator="rademacher").kind == "hessian"
