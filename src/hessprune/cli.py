"""The command line: each command reads its arguments, calls one function, and shows what it returns.

Imports that take long are made inside the commands, so that `--help` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="hessprune",
    help="Make neural networks smaller and faster with second-order information.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="out/<recipe>")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as prune.budget.macs=0.4")
]


@app.command(epilog="Example: [bold]hessprune demo --out out/demo[/]")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/demo"),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a small ResNet on handwritten digits, halve its MACs, and report."""
    from hessprune.recipe import packaged_recipe

    _run(packaged_recipe("digits"), out, Path(), overrides, as_json)


@app.command(epilog="Example: [bold]hessprune run recipes/cifar10-resnet56.yaml --data-root DATA --out out/resnet56[/]")
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    out: Out = None,
    data_root: Annotated[Path, typer.Option(help="What relative paths of the recipe refer to.")] = Path(),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Prune, fine-tune, export and report as a recipe says; the same command continues an interrupted run."""
    _run(recipe, out or Path("out") / recipe.stem, data_root, overrides, as_json)


@app.command(epilog="Example: [bold]hessprune inspect resnet56 --input-shape 3,32,32[/]")
def inspect(
    model: Annotated[str, typer.Argument(help="A known model, or package.module:factory.")],
    input_shape: Annotated[str, typer.Option(help="Shape of one sample.")] = "3,32,32",
    num_classes: Annotated[int, typer.Option(help="Outputs of the model.")] = 10,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint that must fit the model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what can be pruned in a model, what one unit costs, and what is frozen and why."""
    from hessprune import terminal
    from hessprune.report.inspection import inspect_model

    with terminal.session():
        found = inspect_model(model, input_shape=input_shape, num_classes=num_classes, weights=weights)
    _show_json(found.to_json()) if as_json else terminal.print_inspection(found)


def _run(recipe: Path, out: Path, data_root: Path, overrides: list[str] | None, as_json: bool) -> None:
    """Run a recipe and show its report."""
    from hessprune import pipeline, terminal
    from hessprune.recipe import load_recipe, write_recipe

    with terminal.session(resumable=True):
        settings = load_recipe(recipe, overrides or ())
        write_recipe(settings, out / "recipe.yaml")
        report = pipeline.run(settings, out, data_root=data_root)
    _show_json(report.to_json()) if as_json else terminal.print_report(report, out)


def _show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def main() -> None:
    """Run the command line; the entry point of the `hessprune` script."""
    app()
