"""The site: every public name has its place in the reference, and mkdocs builds all pages without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import hessprune as hp

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs", reason="the site needs `pip install -e '.[docs]'`")


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference(pages):
    listed = [name for names in pages.stages().values() for name, _ in names]
    assert sorted(name for name in listed if name.removeprefix("hp.") in hp.__all__) == sorted(
        f"hp.{name}" for name in hp.__all__
    )
    assert len(listed) == len({*listed})


def test_links_out_of_the_site_lead_to_the_source(pages):
    text = "[a](../CONTRIBUTING.md) [b](results/demo.json) [c](faq.md#x) ![d](images/e.png)\n```python timm\nx\n```"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    shown = pages.on_page_markdown(text, page)
    assert re.findall(r"\]\((.*?)\)", shown) == [
        f"{pages.SOURCE}CONTRIBUTING.md", f"{pages.SOURCE}docs/results/demo.json", "faq.md#x", "images/e.png"
    ]  # fmt: skip
    assert "```python\n" in shown
    page.file.src_uri = "guides/x.md"
    shown = pages.on_page_markdown("[a](../../CONTRIBUTING.md#files) [b](../faq.md) [c](own-cnn.md)", page)
    assert re.findall(r"\]\((.*?)\)", shown) == [f"{pages.SOURCE}CONTRIBUTING.md#files", "../faq.md", "own-cnn.md"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 10 << 20
    methods = (tmp_path / "reference" / "methods.html").read_text("utf-8")
    assert "hp.saliency" in methods
    assert "&gt;&gt;&gt;" in methods
