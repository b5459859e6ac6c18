"""The import table: who may import whom, and which packages the core may know."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hessprune"
LEVELS = {
    0: (
        "errors",
        "_checks",
        "_files",
        "_interactions",
        "_modules",
        "_progress",
        "_quiet",
        "_stand_ins",
        "_sums",
        "_state",
        "_watch",
    ),
    1: ("structure", "curvature", "data", "models"),
    2: ("saliency", "planning.cost"),
    3: ("planning",),
    4: ("surgery",),
    5: ("training", "quantize", "evaluate", "latency", "timing", "export", "checkpoint"),
    6: ("report", "pipeline", "run"),
    7: ("recipe", "cli", "terminal"),
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names}
ALLOWED = {  # beyond torch, numpy, safetensors and the standard library, at the top of a file
    "recipe": {"pydantic", "yaml"},
    "cli": {"typer"},
    "report": {"matplotlib"},
    "terminal": {"rich"},
    "quantize": {"torchao"},  # in the files that are only imported with it
}
CORE = {"torch", "numpy", "safetensors"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def home(name: str) -> str:
    """Return the entry of the table that a module belongs to."""
    candidates = [entry for entry in LEVEL_OF if name == entry or name.startswith(entry + ".")]
    assert candidates, f"{name} has no place in the import table"
    return max(candidates, key=len)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("name", "tree"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_modules_import_only_what_lies_below(name: str, tree: ast.Module) -> None:
    own = home(name)
    for imported in imports(tree):
        if not imported.startswith("hessprune."):
            continue
        other = home(imported.removeprefix("hessprune."))
        same_family = other.split(".")[0] == own.split(".")[0]
        assert same_family or LEVEL_OF[other] < LEVEL_OF[own] or allowed_beside(own, other), (
            f"{name} imports {imported}"
        )


def allowed_beside(own: str, other: str) -> bool:
    """The foundation and the outer stages may build on each other; the core never looks sideways."""
    if LEVEL_OF[own] != LEVEL_OF[other]:
        return False
    return LEVEL_OF[own] == 0 or LEVEL_OF[own] >= 5


def test_the_core_knows_its_exceptions_only() -> None:
    """`planning` and `surgery` take tensors, never saliencies; `curvature` never sees groups."""
    for name, tree in modules():
        found = {
            imported.removeprefix("hessprune.").split(".")[0] for imported in imports(tree) if "hessprune" in imported
        }
        if home(name).startswith(("planning", "surgery")):
            assert not found & {"saliency", "curvature"}, name
        if home(name) == "curvature":
            assert "structure" not in found, name


def top_level_packages(tree: ast.Module) -> set[str]:
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in nodes for name in imports(node)}


@pytest.mark.parametrize(("name", "tree"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_optional_packages_are_imported_lazily(name: str, tree: ast.Module) -> None:
    allowed = CORE | ALLOWED.get(home(name), set()) | set(sys.stdlib_module_names) | {"hessprune"}
    assert top_level_packages(tree) <= allowed, (
        f"{name} imports {sorted(top_level_packages(tree) - allowed)} at the top"
    )


def test_model_zoos_are_never_imported() -> None:
    for name, tree in modules():
        assert not {"torchvision", "timm", "transformers"} & {imported.split(".")[0] for imported in imports(tree)}, (
            name
        )


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
    ]
    block = f"import sys\nfor name in {optional}: sys.modules[name] = None\n"
    program = block + "import hessprune as hp\nprint(callable(hp.prune))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
