from dataclasses import replace

from hessprune.lab.report.layer_cards import command, files_card, layer_card
from tests.lab.report.values import bare_report, small_report


def test_layers_show_before_and_after_and_why():
    card = layer_card(small_report())
    assert "4 → <b>3</b>" in card
    assert "400 → <b>300</b>" in card
    assert "whole because &lt;it&gt; returns it" in card
    assert ">10<" in card  # a width that stays is one number
    assert layer_card(bare_report()) == files_card(bare_report()) == ""


def test_long_tables_are_folded():
    report = small_report()
    assert "<details>" not in layer_card(report)
    assert "30 layers" in layer_card(replace(report, table=report.table * 15))


def test_files_are_those_that_the_settings_ask_for():
    report = replace(small_report(), settings={"export": {"onnx": True}, "data": {"root": "x"}})
    card = files_card(report)
    assert 'href="model.onnx"' in card
    assert "int8.onnx" not in card
    assert "4 s in all" in card
    assert "hp.load(&quot;model&quot;)" in card
    assert command(report) == "hessprune run recipe.yaml --data-root DATA --out again"
    assert "--data-root" not in command(small_report())
