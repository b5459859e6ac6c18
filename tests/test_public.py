"""The public face: few names, loaded when used, documented by examples that run when pasted."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hessprune as hp

ROOT = Path(__file__).parents[1]
NAMES = [name for name in dir(hp) if name[0] != "_" and name not in {"HessPruneError", "errors"}]


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_names_are_few_and_each_exists() -> None:
    assert len(hp.__all__) == len(set(hp.__all__)) <= 55
    assert all(hasattr(hp, name) for name in dir(hp))
    assert {"errors", "__version__", *hp.__all__} <= set(dir(hp))
    with pytest.raises(AttributeError, match="no attribute 'purne'"):
        hp.purne  # noqa: B018
    errors = {name for name, value in vars(hp.errors).items() if isinstance(value, type)}
    assert {"ArgumentError", "BudgetError", "DataError", "HessPruneError"} <= errors
    assert not errors & (set(hp.__all__) - {"HessPruneError"})


def test_functions_are_functions_whatever_was_imported_before() -> None:
    rooms = [path.stem for path in (ROOT / "src" / "hessprune").iterdir() if path.suffix in {"", ".py"}]
    assert not set(rooms) & (set(hp.__all__) - {"errors"})
    program = "import hessprune.methods.scoring, hessprune.deploy.evaluation, hessprune.pruning.prune\n"
    assert run(program + "import hessprune as hp\nprint(*map(callable, (hp.saliency, hp.evaluate, hp.prune)))") == (
        "True True True"
    )


def loaded_after(statement: str) -> set[str]:
    """Return the package's modules that a statement loads in a new process."""
    program = f"import sys\n{statement}\nprint(*[m for m in sys.modules if m.startswith('hessprune')])"
    return set(run(program).split())


def test_the_import_loads_next_to_nothing_and_a_name_only_its_rooms() -> None:
    assert loaded_after("import hessprune") == {"hessprune"}
    assert "torch" not in run("import sys, hessprune\nprint(*sys.modules)").split()
    pruning = loaded_after("import hessprune as hp; hp.prune, hp.find_groups, hp.save, hp.Budget, hp.saliency")
    outer = {name for name in pruning if name.split(".")[1:2] in (["lab"], ["quantize"])}
    assert not outer


def test_the_command_line_waits_for_nothing() -> None:
    loaded = run("import sys, hessprune.lab.cli\nprint(*sys.modules)").split()
    assert not {"torch", "numpy", "matplotlib", "pydantic"} & set(loaded)


@pytest.mark.parametrize("name", NAMES)
def test_examples_run_as_pasted_into_a_new_interpreter(name: str) -> None:
    """Each public name has a docstring with one line at the top, and its example needs no other imports."""
    value = getattr(hp, name)
    text = inspect.getdoc(value) or ""
    assert text.split("\n")[0].endswith("."), f"{name} has no first line"
    examples = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert examples.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    runner.run(examples, out=output.append)
    assert not runner.failures, "".join(output)


def test_every_name_stands_in_the_reference_with_one_line() -> None:
    rows = re.findall(r"^\| `hp\.(\w+)` \| (.+) \|$", (ROOT / "docs" / "reference.md").read_text("utf-8"), re.MULTILINE)
    assert dict(rows).keys() == {*dir(hp)} - {"__version__"}
    assert all(text.strip() for _, text in rows)


def test_the_stub_is_a_table_of_imports() -> None:
    stub = ast.parse((ROOT / "src" / "hessprune" / "__init__.pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert (ROOT / "src" / "hessprune" / "py.typed").exists()
