"""The import table: the order of the rooms, who never looks sideways, and the packages that the core may know."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils._device import _device_constructors

SOURCE = Path(__file__).parents[1] / "src" / "hessprune"
TESTS = Path(__file__).parent
ROOMS = (
    "errors",
    "foundation",  # knows nothing of pruning
    "objectives",
    "operators",
    "layers",
    "structure",
    "curvature",
    "methods",
    "costs",
    "planning",
    "surgery",
    "deploy",
    "training",  # validates with what `deploy` measures
    "quantize",
    "latency",  # times what `deploy` exports and `quantize` converts
    "pruning",
    "bottlenecks",
    "lab",
)
"""From the ground up: a room imports only rooms that stand before it."""
APART = {
    ("curvature", "structure"),  # curvature sees named slices of parameters, never groups
    ("costs", "curvature"),
    ("costs", "methods"),
    ("planning", "curvature"),  # planning and surgery take tensors, whatever estimated them
    ("planning", "methods"),
    ("surgery", "curvature"),
    ("surgery", "methods"),
    ("deploy", "curvature"),
    ("deploy", "methods"),
    ("latency", "training"),
}
"""Rooms that stand in this order and yet do not import each other."""
ALLOWED = {  # beyond torch, numpy, safetensors and the standard library, at the top of a file
    "lab.recipe": {"pydantic", "yaml"},
    "lab.cli": {"typer"},
    "lab.options": {"typer"},
    "lab.report": {"matplotlib", "jinja2"},
    "lab.terminal": {"rich"},
    "quantize": {"torchao"},  # in the files that are only imported with it
}
CORE = {"torch", "numpy", "safetensors"}
OUTER = ("lab", "quantize", "latency", "training")
"""Rooms that no name of the core loads."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and name != "__main__":
            yield name, ast.parse(path.read_text(encoding="utf-8"))


MODULES = list(modules())


def room(name: str) -> str:
    return name.split(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def each_module(function):
    return pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])(function)


@each_module
def test_modules_import_only_what_stands_before_them(name: str, tree: ast.Module) -> None:
    own = room(name)
    assert own in ROOMS, f"{name} has no place in the import table"
    for imported in imports(tree):
        other = room(imported.removeprefix("hessprune.")) if imported.startswith("hessprune.") else own
        if other != own:
            assert ROOMS.index(other) < ROOMS.index(own), f"{name} imports {imported}, which stands behind it"
            assert (own, other) not in APART, f"{name} imports {imported}"


def test_rooms_are_few_and_none_is_missing() -> None:
    found = {path.stem for path in SOURCE.iterdir() if not path.name.startswith("__") and path.suffix in {"", ".py"}}
    assert found == set(ROOMS)
    assert len(list(SOURCE.glob("[!_]*"))) <= 20
    assert all(pair[0] in ROOMS and pair[1] in ROOMS for pair in APART)
    assert all(ROOMS.index(low) < ROOMS.index(high) for high, low in APART)


def test_tests_mirror_the_rooms_name_for_name() -> None:
    """`tests/<room>/test_<module>.py` tests `<room>/<module>.py`, or that folder; the root spans several."""
    for test in TESTS.rglob("*/test_*.py"):
        place = test.relative_to(TESTS)
        module = SOURCE / place.with_name(place.name.removeprefix("test_"))
        assert module.exists() or module.with_suffix("").is_dir(), f"{place} tests no module of its name"
    tested = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("*/test_*.py")}
    assert tested == set(ROOMS) - {"errors"}


def top_level_packages(tree: ast.Module) -> set[str]:
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in nodes for name in imports(node)}


@each_module
def test_optional_packages_are_imported_lazily(name: str, tree: ast.Module) -> None:
    own = set().union(*(packages for place, packages in ALLOWED.items() if f"{name}.".startswith(f"{place}.")))
    foreign = top_level_packages(tree) - CORE - own - set(sys.stdlib_module_names) - {"hessprune"}
    assert not foreign, f"{name} imports {sorted(foreign)} at the top"


def test_model_zoos_are_never_imported() -> None:
    for name, tree in MODULES:
        found = {imported.split(".")[0] for imported in imports(tree)}
        assert not {"torchvision", "timm", "transformers"} & found, name


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_the_package_imports_with_torch_numpy_and_safetensors_alone() -> None:
    """A bare install must work: every optional package is made unimportable in a new process."""
    optional = [
        "matplotlib",
        "pydantic",
        "typer",
        "rich",
        "yaml",
        "sklearn",
        "pyarrow",
        "PIL",
        "onnx",
        "onnxruntime",
        "torchao",
        "tokenizers",
    ]
    block = f"import sys\nfor name in {optional}: sys.modules[name] = None\n"
    assert run(block + "import hessprune as hp\nprint(callable(hp.prune))") == "True"


@each_module
def test_tensors_are_made_on_a_device_by_name(name: str, tree: ast.Module) -> None:
    """Without one they would lie where `torch.set_default_device` says."""
    made = {function.__name__ for function in _device_constructors()}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).removeprefix("torch.") in made and ast.unparse(call.func).startswith("torch."):
            assert "device" in {keyword.arg for keyword in call.keywords}, f"{name}: {ast.unparse(call)}"
