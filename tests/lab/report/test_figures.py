import re
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from hessprune.lab.report import LayerWidth, figures
from tests.lab.report.values import bare_report, implanted_report, small_report

DRAWINGS = [figures.accuracy_against_cost, figures.network, figures.saliencies, figures.training]


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_a_drawing_is_one_bare_svg_coloured_by_the_page(draw):
    svg = draw(small_report())
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg"
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("aria-label")
    assert "http" not in svg
    colors = set(re.findall(r"#[0-9a-f]{6}\b", svg)) - {"#000000"}  # the default of shapes that are not painted
    assert colors == set()
    assert "var(--" in svg


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_nothing_to_show_gives_no_drawing(draw):
    assert draw(bare_report()) == ""


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_a_drawing_depends_on_the_report_alone_and_leaves_matplotlib_as_it_was(draw):
    before = dict(mpl.rcParams)
    assert draw(small_report()) == draw(small_report())
    assert dict(mpl.rcParams) == before


def test_the_curve_names_its_methods_and_units():
    texts = _texts(figures.accuracy_against_cost(small_report()))
    assert {"hap", "magnitude", "random", "dense", "fine-tuned", "MACs kept", "validation accuracy"} <= texts


def test_names_of_methods_that_end_together_do_not_overlap():
    svg = figures.accuracy_against_cost(small_report())
    heights = [_height(svg, method) for method in ("magnitude", "hap")]
    assert abs(heights[0] - heights[1]) >= 9  # points; the font has 9.5


def test_a_small_network_shows_names_and_counts_and_a_large_one_its_number_of_layers():
    small = small_report()
    assert {"stem", "inner", "2", "3"} <= _texts(figures.network(small))
    many = tuple(LayerWidth(name=f"l{i}", group=f"l{i}", dense=8, kept=4) for i in range(40))
    assert "40 layers, from input to output" in _texts(figures.network(replace(small, layers=many)))


def test_saliencies_of_zero_are_drawn_too():
    svg = figures.saliencies(small_report())
    assert svg.count("<use") >= 12  # one mark per unit


def _texts(svg):
    return {text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)}


def _height(svg, text):
    tag = re.search(rf"<text([^>]*)>{text}</text>", svg).group(1)
    match = re.search(r'translate\([\d.]+ ([\d.]+)\)|\by="([\d.]+)"', tag)
    return float(match.group(1) or match.group(2))


def test_implanted_units_have_a_colour_and_a_count_of_their_own():
    assert ">1 + 1<" in figures.network(implanted_report()).replace("\n", "")
    for draw in (figures.network, figures.saliencies):
        assert draw(implanted_report()).count("var(--green)") > draw(small_report()).count("var(--green)")


def test_every_stage_of_training_has_a_column_and_no_accuracy_is_above_one():
    report = small_report()
    flat = tuple(replace(epoch, validation_accuracy=1.0) for epoch in report.history["finetune"])
    svg = figures.training(replace(report, history={"pretrain": flat, "finetune": flat, "quantize": flat}))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>|<!-- ([^>]*) -->", svg)
    shown = [first or second for first, second in texts]
    for title in ("Training", "Fine-tuning", "Training with rounding"):
        assert shown.count(title) == 1
    assert shown.count("loss") == shown.count("validation accuracy") == 1
    percents = [float(text.split()[0]) for text in shown if text.endswith("%")]
    assert percents
    assert max(percents) <= 100


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(("narrow", "pixels"), [(True, 317), (False, 691)], ids=["telephone", "page"])
def test_letters_have_ten_pixels_where_a_drawing_is_shown(draw, narrow, pixels):
    """On a telephone of 390 pixels a card is 317 wide; the wide drawings are shown from 46 rem on."""
    svg = draw(small_report(), narrow=narrow)
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:[\w ]*? )?([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) * min(pixels / width, 1.2) >= 9.99
