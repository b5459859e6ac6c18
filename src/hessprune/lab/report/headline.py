"""A run in a line or two."""

from hessprune.lab.report.run_report import ModelResult, RunReport
from hessprune.lab.report.scores import score_of


def zones(report: RunReport) -> str:
    """Return how many units are kept, implanted and removed, in one line; empty where none is implanted."""
    implanted = sum(sum(group.implanted) for group in report.saliency)
    stays = sum(sum(group.kept) for group in report.saliency)
    units = sum(len(group.kept) for group in report.saliency)
    found = f"\nunits: {stays - implanted} kept, {implanted} implanted, {units - stays} removed\n"
    return found if implanted else ""


def headline(report: RunReport) -> str:
    """Return the run in one line.

    Example:
        >>> from hessprune.lab.report import ModelResult, RunReport, headline
        >>> dense = ModelResult(accuracy=0.93, loss=0.3, macs=200, params=10, size_bytes=40)
        >>> final = ModelResult(accuracy=0.927, loss=0.3, macs=100, params=5, size_bytes=20)
        >>> headline(RunReport(title="ResNet-56", models={"dense": dense, "finetuned": final}))
        'ResNet-56: half the MACs, −0.3 points'
        >>> words = {"accuracy": 0.4, "loss": 3.0, "macs": 100, "params": 5, "size_bytes": 20}
        >>> dense, final = (ModelResult(**words, perplexity=value) for value in (30.41, 33.8))
        >>> headline(RunReport(title="SmolLM2", models={"dense": dense, "finetuned": final}))
        'SmolLM2: 100 % of the MACs, perplexity 30.41 → 33.8'
    """
    dense, final = report.models["dense"], report.final
    share, quantity = final.macs / dense.macs, "MACs"
    if "params" in report.settings.get("prune", {}).get("budget", {}):
        share, quantity = final.params / dense.params, "parameters"
    integers = " in INT8" if "int8" in report.models else ""
    parts = [f"{_share(share)} the {quantity}{integers}", *_milliseconds(dense, final), _change(report)]
    return f"{report.title}: {', '.join(parts)}"


def _change(report: RunReport) -> str:
    """Return what became of the score."""
    score, dense = score_of(report), report.models["dense"]
    if score.lower_is_better:
        return f"{score.name} {score.text(score.of(dense))} → {score.text(score.of(report.final))}"
    return score.change(score.of(report.final), score.of(dense))


def _milliseconds(dense: ModelResult, final: ModelResult) -> tuple[str, ...]:
    """Return the latency before and after, where both were measured."""
    if not dense.latency_ms or not final.latency_ms:
        return ()
    return (f"{dense.latency_ms:.3g} → {final.latency_ms:.3g} ms",)


def _share(fraction: float) -> str:
    named = {
        "half": 1 / 2,
        "a third of": 1 / 3,
        "two thirds of": 2 / 3,
        "a quarter of": 1 / 4,
        "three quarters of": 3 / 4,
    }
    for words, value in named.items():
        if abs(fraction - value) < 0.012:
            return words
    return f"{100 * fraction:.0f} % of"
