"""The command line: each command reads its arguments, calls one function, and shows what it returns.

Imports that take long are made inside the commands, so that `--help` waits for torch alone.
"""

import atexit
import gc
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import hessprune
from hessprune.lab.options import (
    AsJson,
    Channels,
    DataRoot,
    Ignore,
    Methods,
    ModelName,
    NumClasses,
    Out,
    Overrides,
    Quantity,
    Split,
    Weights,
    is_first_process,
    with_volume,
)

app = typer.Typer(
    name="hessprune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_UsageError: Any = typer.BadParameter.__bases__[0]  # click's own, which typer carries under a private name


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hessprune {hessprune.__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make neural networks smaller and faster with second-order information."""
    del version


@app.command(epilog="Example: [bold]hessprune demo --out out/demo[/], or [bold]hessprune demo --text[/]")
@with_volume
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="out/demo, or out/demo-text")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Prune a small encoder of sentences instead.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a small network offline, take two thirds of its MACs, turn it into INT8, and report.

    The network reads handwritten digits; with --text it is an encoder of sentences, which loses heads and neurons.
    """
    from hessprune.lab.recipe import packaged_recipe

    name, folder = ("grammar", "out/demo-text") if text else ("digits", "out/demo")
    _run(packaged_recipe(name), out or Path(folder), Path(), overrides, as_json)


@app.command(epilog="Example: [bold]hessprune run recipes/cifar10-resnet56.yaml --data-root DATA --out out/resnet56[/]")
@with_volume
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    out: Out = None,
    data_root: DataRoot = Path(),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Prune, fine-tune, export and report as a recipe says; the same command continues an interrupted run."""
    _run(recipe, out or Path("out") / recipe.stem, data_root, overrides, as_json)


@app.command(epilog="Example: [bold]hessprune prune timm:resnet50 --weights w.pth --calibration image-folder:IMAGES[/]")
@with_volume
def prune(
    model: ModelName,
    budget: Annotated[str, typer.Option(help="What may be left: macs=0.5, params=50%, latency_ms=50%.")] = "macs=0.5",
    calibration: Annotated[
        str | None, typer.Option(help="Samples: SOURCE:PATH, a path, or digits. Labels are not needed.")
    ] = None,
    method: Annotated[str, typer.Option(help="Such as joint, or 'hap(estimator=rademacher)'.")] = "joint",
    out: Out = None,
    weights: Weights = None,
    shape: Annotated[str | None, typer.Option(help="Of one sample, where no data tell it: 3,224,224.")] = None,
    num_classes: NumClasses = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to measure on.")] = 512,
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of this width: kernels like 8.")] = 1,
    ignore: Ignore = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the samples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prune a model by its name, without a recipe, and save it for hp.load."""
    from hessprune.lab import terminal
    from hessprune.lab.named import NamedModel, prune_named, shape_of
    from hessprune.planning.ranking import Ranking

    with terminal.session():
        named = NamedModel(name=model, weights=weights, num_classes=num_classes, shape=shape_of(shape))
        ranking = Ranking(round_to=round_to, ignore=tuple(ignore or ()))
        found = prune_named(
            named,
            out,
            budget=budget,
            calibration=calibration,
            method=method,
            samples=samples,
            ranking=ranking,
            seed=seed,
        )
    _show_json(found.to_json()) if as_json else terminal.print_named(found)


@app.command(epilog="Example: [bold]hessprune inspect resnet56 --input-shape 3,32,32[/]")
@with_volume
def inspect(
    model: ModelName,
    input_shape: Annotated[
        str | None, typer.Option(help="Shape of one sample; tokens of a sentence.", show_default="3,32,32, or its own")
    ] = None,
    num_classes: NumClasses = None,
    weights: Weights = None,
    ignore: Ignore = None,
    units: Annotated[str | None, typer.Option(help="Kinds of units, such as embedding,qk,v")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what can be pruned in a model, what one unit costs, and what is frozen and why."""
    from hessprune.lab import terminal
    from hessprune.lab.report.inspection import inspect_model

    with terminal.session(brief=True):
        found = inspect_model(
            model,
            input_shape=input_shape,
            num_classes=num_classes,
            weights=weights,
            ignore=tuple(ignore or ()),
            units=None if units is None else tuple(units.split(",")),  # type: ignore[arg-type]  # checked there
        )
    _show_json(found.to_json()) if as_json else terminal.print_inspection(found)


@app.command(epilog="Example: [bold]hessprune saliency recipes/digits.yaml --method magnitude --top 5[/]")
@with_volume
def saliency(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe: data, model, weights.")],
    out: Out = None,
    data_root: DataRoot = Path(),
    overrides: Overrides = None,
    method: Annotated[
        str | None, typer.Option(help="In place of the recipe's, such as joint or 'hap(estimator=hutchinson)'.")
    ] = None,
    ignore: Ignore = None,
    top: Annotated[int, typer.Option(min=1, help="Units to name in each group, at either end.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show how salient the units of each group are; a run in the same folder reads the values again."""
    from hessprune.lab import terminal
    from hessprune.lab.recipe import load_recipe
    from hessprune.lab.scoring import measure_saliency

    out = out or Path("out") / recipe.stem
    with terminal.session(resumable=True):
        settings = load_recipe(recipe, overrides or ())
        found = measure_saliency(settings, out, method=method, ignore=tuple(ignore or ()), data_root=data_root)
    _show_json(found.to_json()) if as_json else terminal.print_saliencies(found, top, out)


@app.command(
    epilog="Example: [bold]hessprune compare recipes/digits.yaml --methods random,hap,joint --budgets 0.5,0.3[/]"
)
@with_volume
def compare(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe: data, model, weights, fine-tuning.")],
    out: Out = None,
    data_root: DataRoot = Path(),
    overrides: Overrides = None,
    methods: Methods = None,
    budgets: Annotated[str | None, typer.Option(help="Kept shares.", show_default="0.75,0.6,0.5,0.4")] = None,
    quantity: Quantity = None,
    seeds: Annotated[
        str | None, typer.Option(help="One draw of calibration images each.", show_default="0,1,2")
    ] = None,
    compensate: Annotated[bool | None, typer.Option(help="One way only; both by default.")] = None,
    channels: Channels = None,
    ignore: Ignore = None,
    epochs: Annotated[
        int | None, typer.Option(help="Fine-tune every pruned model for so long.", show_default="0")
    ] = None,
    lrs: Annotated[str | None, typer.Option(help="Learning rates to try, such as 0.03,0.1")] = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods at several budgets, on several draws of calibration images; interrupted, it continues."""
    from hessprune.lab import terminal
    from hessprune.lab.compare import compare as compare_methods
    from hessprune.lab.comparing import CompareSettings
    from hessprune.lab.recipe import load_recipe

    options = {
        "methods": methods,
        "budgets": budgets,
        "quantity": quantity,
        "seeds": seeds,
        "channels": channels,
        "ignore": ignore,
        "epochs": epochs,
        "lrs": lrs,
        "split": split,
        "compensate": compensate,
    }
    out = out or Path("out") / f"compare-{recipe.stem}"
    with terminal.session(resumable=True):
        asked, settings = CompareSettings.from_text(options), load_recipe(recipe, overrides or ())
        found = compare_methods(settings, out, comparison=asked, data_root=data_root)
    _show_json(found.to_json()) if as_json else terminal.print_comparison(found, out)


@app.command(epilog="Example: [bold]hessprune bottlenecks recipes/digits-narrow.yaml --growth 1.5 --seeds 0,1,2[/]")
@with_volume
def bottlenecks(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe: data, model, training, fine-tuning.")],
    out: Out = None,
    data_root: DataRoot = Path(),
    overrides: Overrides = None,
    methods: Annotated[
        str | None, typer.Option(help="What finds them, such as joint,sosp-h", show_default="joint")
    ] = None,
    growth: Annotated[
        float | None, typer.Option(help="Parameters of the wider models, a multiple.", show_default="1.5")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="One dense model and calibration each.", show_default="0,1,2")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, find the layers that are too narrow, widen them, train; uniform widening of equal size beside it."""
    from hessprune.lab import terminal
    from hessprune.lab.expanding import ExpandSettings, expand
    from hessprune.lab.recipe import load_recipe

    out = out or Path("out") / f"bottlenecks-{recipe.stem}"
    with terminal.session(resumable=True):
        asked = ExpandSettings.from_text(methods=methods, growth=growth, seeds=seeds)
        settings = load_recipe(recipe, overrides or ())
        found = expand(settings, out, expansion=asked, data_root=data_root)
    _show_json(found.to_json()) if as_json else terminal.print_expansion(found, out)


def _run(recipe: Path, out: Path, data_root: Path, overrides: list[str] | None, as_json: bool) -> None:
    """Run a recipe and show its report."""
    from hessprune.lab import terminal
    from hessprune.lab.recipe import load_recipe, write_recipe
    from hessprune.lab.run import run as run_recipe

    with terminal.session(resumable=True):
        settings = load_recipe(recipe, overrides or ())
        if is_first_process():
            write_recipe(settings, out / "recipe.yaml")
        report = run_recipe(settings, out, data_root=data_root)
    if not is_first_process():
        return
    _show_json(report.to_json()) if as_json else terminal.print_report(report, out)


def _show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def main() -> None:
    """Run the command line, the entry point of the `hessprune` script; wrong usage is one line, as all wrong input."""
    # Python ends with a search for cycles through every object of torch, up to a second: the process gives all back.
    atexit.register(gc.freeze)
    try:
        status = app(prog_name="hessprune", standalone_mode=False)
    except _UsageError as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "hessprune")
        reason = error.format_message().rstrip(".")
        sys.stderr.write(f"error: {reason}. Try '{command} --help'.\n" if reason else "")
        status = 2
    sys.exit(status if isinstance(status, int) else 0)
