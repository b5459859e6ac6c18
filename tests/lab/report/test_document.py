import pytest

from hessprune.errors import DataError
from hessprune.lab.report.document import percent_text
from hessprune.lab.report.run_report import RunReport
from tests.lab.report.values import small_report


def test_a_file_gives_back_the_value_that_was_saved(tmp_path):
    report = small_report()
    assert RunReport.load(report.save(tmp_path / "report.json")) == report


def test_a_document_of_another_kind_is_one_line_with_the_command_to_repeat():
    with pytest.raises(DataError, match=r"must be a run's report.json, got one that lacks or .*Run the recipe again"):
        RunReport.from_json({"title": "net"})


def test_one_draw_has_no_spread():
    assert (percent_text(0.5, None), percent_text(0.5, 0.0)) == ("50.0", "50.0 ± 0.0")
