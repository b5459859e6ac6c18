from dataclasses import replace

from hessprune.lab.report import render
from hessprune.lab.report.layer_cards import command, files_beside, layer_columns, layer_note, layer_rows, main_times
from tests.lab.report.values import bare_report, small_report


def test_layers_show_before_and_after_and_why():
    page = render(small_report())
    assert "4 → <b>3</b>" in page
    assert "400 → <b>300</b>" in page
    assert "0.50 → <b>0.30</b>" in page
    assert "whole because &lt;it&gt; returns it" in page
    assert ">10<" in page  # a width that stays is one number
    assert list(layer_rows(bare_report())) == []
    assert "Layer by layer" not in render(bare_report())


def test_a_layer_without_a_time_has_a_dash_and_a_report_without_times_no_column():
    report = small_report()
    assert [row["pairs"][-1] for row in layer_rows(report)] == [
        ("Milliseconds", ("0.50", "0.30")),
        ("Milliseconds", ("–", "–")),
    ]
    assert "0.50 → 0.30 in all" in layer_note(report)
    assert "one image, one thread" in layer_note(report)
    untimed = replace(report, table=tuple(replace(row, ms=None) for row in report.table))
    assert layer_note(untimed) == ""
    assert "Milliseconds" not in layer_columns(untimed)
    assert "Milliseconds" not in render(untimed)


def test_long_tables_are_folded():
    report = small_report()
    assert "<summary>Layer by layer" not in render(report)
    assert "30 layers" in render(replace(report, table=report.table * 15))


def test_the_longest_stages_are_named_and_the_others_counted():
    report = replace(small_report(), seconds={f"stage {n}": float(n) for n in range(9)})
    found = list(main_times(report))
    assert found[0] == ("stage 8", 8.0)
    assert found[-1] == ("3 more", 3.0)
    assert sum(seconds for _, seconds in found) == 36
    assert list(main_times(small_report())) == [("the dense model", 3.0), ("fine-tuning, hap", 1.5)]


def test_files_are_those_that_the_settings_ask_for():
    report = replace(small_report(), settings={"export": {"onnx": True}, "data": {"root": "x"}})
    names = [name for name, _ in files_beside(report)]
    assert names == ["model/", "model.onnx", "recipe.yaml", "report.json"]
    page = render(report)
    assert 'href="model.onnx"' in page
    assert "int8.onnx" not in page
    assert "4 s in all" in page
    assert "hp.load(&#34;model&#34;)" in page
    assert command(report) == "hessprune run recipe.yaml --data-root DATA --out again"
    assert "--data-root" not in command(small_report())
