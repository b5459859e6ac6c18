import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from shutil import which

import pytest

from hessprune.lab.report import RunReport, render, write_html
from hessprune.lab.report.formats import format_bytes, format_count
from tests.lab.report.values import bare_report, implanted_report, small_report


class Outline(HTMLParser):
    """Checks that tags close in order, and gathers tags and text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return render(small_report())


def test_the_page_is_well_formed_and_escaped(page):
    outline = Outline(page)
    assert outline.open == []
    assert "Net <A&B>: half the MACs, 2 → 1 ms, −0.3 points" in outline.text
    assert "Looked at <once>." in outline.text


def test_the_page_asks_for_nothing_from_outside(page):
    assert "http" not in page
    assert re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page) is None


def test_the_page_serves_light_and_dark(page):
    assert "prefers-color-scheme: dark" in page
    defined = set(re.findall(r"(--\w+):", page))
    assert set(re.findall(r"var\((--\w+)\)", page)) <= defined


def test_every_section_is_there(page):
    outline = Outline(page)
    for title in (
        "Accuracy against cost",
        "The decision",
        "Kept width per layer",
        "Saliency of every unit",
        "Training",
        "Layer by layer",
        "Files",
    ):
        assert title in outline.text
    assert outline.tags.count("svg") == 8  # for screens, and for telephones
    assert "details" in outline.tags


def test_the_table_compares_with_the_dense_model(page):
    text = Outline(page).text
    assert "92.7 %−0.3 points" in text
    assert "50050.0 %" in text  # MACs
    assert "1.00 ms2.00 × as fast" in text


def test_a_baseline_that_was_fine_tuned_stands_in_one_row(page):
    text = Outline(page).text
    assert "Random, fine-tuned30.0 % before training" in text
    assert "Magnitude, pruned" in text
    assert "Random, pruned" not in text


def test_the_decision_says_how_sure_it_is(page):
    text = Outline(page).text
    assert "Gauss–Newton (GGN)" in text
    assert "none: exact" in text
    assert "Units removed7 of 12" in text


def test_all_settings_and_seeds_are_listed(page):
    assert "prune.budget.macs0.5" in Outline(page).text
    assert "ab" * 32 in page


def test_a_bare_report_renders_without_empty_sections():
    outline = Outline(render(bare_report()))
    assert "svg" not in outline.tags
    assert "Training" not in outline.text


def test_the_page_can_be_drawn_from_the_json_alone(tmp_path, page):
    stored = RunReport.load(small_report().save(tmp_path / "report.json"))
    assert write_html(stored, tmp_path / "report.html").read_text("utf-8") == page


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (999.9, "1.00 k"), (62_742_853, "62.7 M"), (3.2e9, "3.20 G")])
def test_counts_have_three_digits(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12 B"), (2048, "2.00 KiB"), (3_412_072, "3.25 MiB"), (2**31, "2.00 GiB")]
)
def test_sizes_are_binary(value, text):
    assert format_bytes(value) == text


def test_implanted_units_are_counted_and_explained_only_where_there_are_any(page):
    text = Outline(render(implanted_report())).text
    assert "Units implanted1 of 12" in text
    assert "a low-rank stand-in of the filter" in text
    assert "mplanted" not in Outline(page).text


@pytest.fixture
def browser(tmp_path):
    """A function that runs a browser without a screen on an address, and returns what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed")

    def run(address: str, *options: str) -> str:
        common = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
        common += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
        command = [program, *common, *options, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


MEASURE = """
let d = document.getElementById('f').contentDocument;
let shown = [...d.querySelectorAll('svg text')].filter(t => t.getClientRects().length);
let sizes = shown.map(t => {
  let s = t.ownerSVGElement; return parseFloat(getComputedStyle(t).fontSize) * s.clientWidth / s.viewBox.baseVal.width;
});
document.title = d.documentElement.scrollWidth + ' ' + shown.length + ' ' + Math.min(...sizes).toFixed(2);
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_no_screen_has_to_be_scrolled_sideways_and_charts_can_be_read(width, page, tmp_path, browser):
    """The page in a frame of that width, which a second page measures."""
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "measure.js").write_text(f"function measure() {{ {MEASURE} }}")
    frame = f'<iframe id="f" src="page.html" style="border:0;width:{width}px;height:900px" onload="measure()"></iframe>'
    (tmp_path / "outer.html").write_text(f'<script src="measure.js"></script>{frame}')
    found = browser((tmp_path / "outer.html").as_uri(), "--dump-dom")
    scroll, texts, smallest = re.search(r"<title>(\d+) (\d+) ([\d.]+)</title>", found).groups()
    assert int(scroll) <= width
    assert int(texts) > 20
    assert float(smallest) >= 10


@pytest.mark.slow
def test_the_page_prints(page, tmp_path, browser):
    (tmp_path / "page.html").write_text(page)
    browser((tmp_path / "page.html").as_uri(), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


def test_a_model_that_is_not_faster_says_why():
    report = small_report()
    slow = {"dense": report.models["dense"], "finetuned": replace(report.models["finetuned"], latency_ms=2.1)}
    assert "no faster here, because widths that are no multiples of 8" in render(replace(report, models=slow))
    even = replace(report, models=slow, table=())
    assert "set a budget of latency_ms" in render(even)
    tiny = {name: replace(model, latency_ms=0.02) for name, model in slow.items()}
    assert "time on calls, not on arithmetic" in render(replace(report, models=tiny))
    assert "slower" not in render(even)
