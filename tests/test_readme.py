"""README and docs are executed: every Python block runs, every command parses, every path and link exists."""

import doctest
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import typer

import hessprune
from hessprune.lab.cli import app
from hessprune.lab.recipe import load_recipe
from hessprune.methods.method import METHODS
from hessprune.methods.table import load_methods
from tests import huggingface

ROOT = Path(__file__).parents[1]
load_methods()
README = ROOT / "README.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("docs/guides/*.md"))
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A language, a package that not everyone has, the text."""
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of every fenced block."""
    return [(language, body) for language, _, body in BLOCK.findall(page.read_text("utf-8"))]


def commands(page: Path) -> list[list[str]]:
    """Return every `hessprune …` of the shell blocks and of inline code, split into words."""
    text = page.read_text("utf-8")
    shell = "\n".join(body for language, body in blocks(page) if language == "sh").replace("\\\n", " ")
    inline = re.findall(r"`(hessprune [^`\n]+)`", BLOCK.sub("", text))
    lines = [line.split("  #")[0].strip() for line in shell.splitlines()] + inline
    return [shlex.split(line)[1:] for line in lines if line.startswith("hessprune ")]


SLOW = {"own-cnn.md", "iterative.md", "int8-runtimes.md", "detector.md", "segmentation.md", "timm-vit.md"}
"""Pages whose blocks train or calibrate for seconds."""
MARKED = [pytest.param(page, marks=pytest.mark.slow) if page.name in SLOW else page for page in PAGES]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


STUDIES = [path.stem for path in (ROOT / "studies").glob("*.yaml")]


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.name)
def test_python_blocks_run_and_print_what_is_shown(page, tmp_path, monkeypatch):
    """All blocks of a page share one namespace; a `text` block is what the Python block before it prints."""
    monkeypatch.chdir(tmp_path)
    namespace, printed = {"__name__": "page"}, None
    with torch.random.fork_rng():
        for language, package, body in BLOCK.findall(page.read_text("utf-8")):
            if language == "text" and printed is not None:
                assert doctest.OutputChecker().check_output(body, printed, SAME), f"{page.name} prints:\n{printed}"
            printed = None
            if package and find_spec(package):
                huggingface.package(package)
            if language == "python" and (not package or find_spec(package)):
                with redirect_stdout(io.StringIO()) as out:
                    exec(compile(body, page.name, "exec"), namespace)
                printed = out.getvalue()
                assert isinstance(printed, str)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_print_what_they_show(path, tmp_path, monkeypatch):
    """They are made from the guides, which `docs/build.py --check` holds them against."""
    monkeypatch.chdir(tmp_path)
    content = json.loads(path.read_text("utf-8"))
    assert (content["nbformat"], content["cells"][0]["cell_type"]) == (4, "markdown")
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 2
    if any("transformers" in line for line in cells[0]["source"]):
        huggingface.package("transformers")
    namespace = {"__name__": "page"}
    with torch.random.fork_rng():
        for cell in cells:
            with redirect_stdout(io.StringIO()) as out:
                exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
            shown = "".join(line for output in cell["outputs"] for line in output["text"])
            assert not shown or doctest.OutputChecker().check_output(shown, out.getvalue(), SAME)


def test_there_are_three_notebooks():
    assert len(list(ROOT.glob("examples/notebooks/*.ipynb"))) == 3


def test_recipes_shown_in_full_can_be_read(page, tmp_path):
    """A block of `yaml recipe` is a whole one."""
    for number, (language, kind, body) in enumerate(BLOCK.findall(page.read_text("utf-8"))):
        if (language, kind) == ("yaml", "recipe"):
            path = tmp_path / f"{number}.yaml"
            path.write_text(body, "utf-8")
            assert load_recipe(path, ()).prune.budget.value > 0


def test_commands_exist_with_these_options(page):
    known = vars(typer.main.get_command(app))["commands"]
    for name, *arguments in commands(page):
        assert name in known, f"{page.name}: hessprune {name}"
        if arguments:
            known[name].make_context(name, arguments)  # raises on an unknown option


def test_recipes_exist_and_overrides_fit(page):
    for words in commands(page):
        recipes = [word for word in words if word.startswith("recipes/")]
        overrides = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
        for recipe in recipes:
            assert load_recipe(ROOT / recipe, overrides).prune.budget.value > 0


def test_every_study_has_a_target():
    (named,) = re.findall(r"^STUDIES := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(named.split()) == {f"study-{name}" for name in STUDIES}


def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE)) | {f"study-{name}" for name in STUDIES}
    text = page.read_text("utf-8")
    named = set(re.findall(r"`make ([\w-]+)[^`]*`|^make ([\w-]+)", text, re.MULTILINE))
    assert {a or b for a, b in named} <= targets


def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_absolute_links_of_the_readme_lead_somewhere():
    """They are absolute, so that the page reads on PyPI; each file behind them exists."""
    text = README.read_text("utf-8")
    links = re.findall(r"https://(?:raw\.githubusercontent|github)\.com/hessprune/hessprune/([^)#\s]+)", text)
    paths = [re.sub(r"^(?:(?:blob|tree)/)?main/", "", link) for link in links]
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]
    assert not re.findall(r"\]\((?!https://)", text)
    named = {name.lower() for name in re.findall(r"(?<!!)\[([^\]]+)\](?![(:])", BLOCK.sub("", text))}
    assert named == set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))


def test_the_readme_is_short_and_installs_before_use():
    text = README.read_text("utf-8")
    assert len(text.split()) <= 900
    assert text.index("pip install") < text.index("import hessprune")


def test_lines_are_short(page):
    prose = BLOCK.sub("", page.read_text("utf-8"))
    long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
    assert not long


def test_the_file_map_is_complete():
    """Every path in the map of CONTRIBUTING exists, and every top-level module of the package is in it."""
    listed = dict(map_entries())
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert not missing
    source = ROOT / "src" / "hessprune"
    modules = {path.name + "/" * path.is_dir() for path in source.iterdir() if not path.name.startswith("__")}
    assert modules == {path.removeprefix("src/hessprune/") for path in listed if path.count("/") >= 2 and is_top(path)}
    assert all(listed.values()), "every entry says what it is"


def map_entries() -> list[tuple[str, str]]:
    """Read the map: an entry is a path and its description; indentation stands for the folder above."""
    bodies = (body for language, body in blocks(ROOT / "CONTRIBUTING.md") if language == "text")
    body = next(body for body in bodies if "src/hessprune/" in body)
    entries, folder = [], ""
    for line in body.splitlines():
        path, _, description = line.strip().partition("  ")
        if not line.startswith(" "):
            folder = path
        entries.append((path if path == folder else folder + path, description.strip()))
    return entries


def is_top(path: str) -> bool:
    rest = path.removeprefix("src/hessprune/")
    return path.startswith("src/hessprune/") and bool(rest) and "/" not in rest.rstrip("/")


def test_every_method_is_described():
    table = (ROOT / "docs" / "saliencies.md").read_text("utf-8").split("## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(METHODS)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert not [method for method in METHODS if f"`{method}`" not in readme]


def test_reasons_are_those_of_the_code():
    text = (ROOT / "docs" / "your-own-model.md").read_text("utf-8")
    rows = re.search(r"^\| reason .*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    phrases = [
        phrase.strip() for row in rows[1].splitlines() for phrase in re.split(r",|\(?'?…'?\)?", row.split("|")[1])
    ]
    rooms = [ROOT / "src" / "hessprune" / room for room in ("operators", "structure")]
    source = "".join(path.read_text("utf-8") for room in rooms for path in room.rglob("*.py"))
    assert len(phrases) > 5
    assert not [phrase for phrase in phrases if phrase not in source]


def test_built_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_changelog_tops_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[([\d.]+)\]", text, re.MULTILINE)[0] == hessprune.__version__
