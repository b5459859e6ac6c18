import json

import pytest

from hessprune.errors import DataError
from hessprune.lab.report import ModelResult, RunReport, headline
from hessprune.lab.report.formats import format_points
from tests.lab.report.values import bare_report, result, small_report


@pytest.mark.parametrize("report", [small_report(), bare_report()], ids=["full", "bare"])
def test_json_round_trip(report, tmp_path):
    assert RunReport.load(report.save(tmp_path / "report.json")) == report


def test_json_has_the_models_at_the_top_level():
    document = json.loads(json.dumps(small_report().to_json()))
    assert list(document)[:4] == ["title", "dense", "pruned", "finetuned"]
    needed = {"accuracy", "loss", "macs", "params", "size_bytes", "latency_ms"}
    assert all(needed <= document[stage].keys() for stage in ("dense", "pruned", "finetuned"))
    assert {"validation", "plan", "settings", "seeds", "versions", "data_fingerprint", "history"} <= document.keys()


def test_a_later_stage_stands_beside_the_others():
    report = small_report()
    later = RunReport.from_json(report.to_json() | {"int8": report.to_json()["finetuned"]})
    assert list(later.models) == ["dense", "pruned", "finetuned", "int8"]
    assert later.final == report.final


@pytest.mark.parametrize(
    "document", [{}, {"title": "x"}, {"title": "x", "dense": {"acc": 1}}, {"title": "x", "dense": 3}]
)
def test_what_is_no_report_is_refused(document):
    with pytest.raises(DataError, match=r"must be a run's report.json"):
        RunReport.from_json(document)


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.5, "half the MACs"), (0.491, "half the MACs"), (0.25, "a quarter of the MACs"), (0.42, "42 % of the MACs")],
)
def test_headline_names_the_share(share, words):
    models = {"dense": result(0.9), "finetuned": result(0.9, share=share)}
    assert headline(RunReport(title="Net", models=models)) == f"Net: {words}, 2 → 2 ms, same accuracy"


def test_headline_speaks_of_parameters_where_the_budget_does():
    models = {"dense": result(0.9), "finetuned": result(0.95, share=0.5)}
    report = RunReport(title="Net", models=models, settings={"prune": {"budget": {"params": 0.5}}})
    assert headline(report) == "Net: half the parameters, 2 → 2 ms, +5.0 points"


def test_points_are_signed_with_a_minus_not_a_hyphen():
    assert [format_points(x) for x in (-1.26, 0.31, -0.049)] == ["−1.3 points", "+0.3 points", "same accuracy"]


def test_error_of_an_accuracy_is_the_binomial_one():
    measured = ModelResult(accuracy=0.5, loss=0.0, macs=1, params=1, size_bytes=4, num_samples=10_000)
    assert measured.accuracy_error == pytest.approx(0.0098, rel=1e-3)
    assert ModelResult(accuracy=1.0, loss=0.0, macs=1, params=1, size_bytes=4, num_samples=10).accuracy_error > 0.1
    assert ModelResult(accuracy=1.0, loss=0.0, macs=1, params=1, size_bytes=4).accuracy_error == 0
