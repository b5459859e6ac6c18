"""A small report, made by hand: every section of the page has something to show."""

from dataclasses import replace

from hessprune.lab.report import (
    CurvePoint,
    EpochPoint,
    Estimate,
    GroupSaliency,
    LayerRow,
    LayerWidth,
    ModelResult,
    RunReport,
)


def result(accuracy: float, *, share: float = 1.0, latency_ms: float | None = 2.0) -> ModelResult:
    return ModelResult(
        accuracy=accuracy,
        loss=1 - accuracy,
        macs=round(1000 * share),
        params=round(4000 * share),
        size_bytes=round(16000 * share),
        latency_ms=latency_ms,
        latency_p10_ms=latency_ms and latency_ms * 0.9,
        latency_p90_ms=latency_ms and latency_ms * 1.2,
        num_samples=1000,
    )


def small_report() -> RunReport:
    epochs = tuple(
        EpochPoint(epoch=e, train_loss=1 / e if e else None, validation_loss=1 / (e + 1), validation_accuracy=e / 3)
        for e in range(4)
    )
    return RunReport(
        title="Net <A&B>",
        models={
            "dense": result(0.93),
            "pruned": result(0.5, share=0.5, latency_ms=1.0),
            "finetuned": result(0.927, share=0.5, latency_ms=1.0),
        },
        validation={"dense": 0.94, "pruned": 0.52, "finetuned": 0.935},
        baselines={
            "magnitude-pruned": result(0.4, share=0.5, latency_ms=None),
            "random-pruned": result(0.3, share=0.5, latency_ms=None),
            "random-finetuned": result(0.9, share=0.5, latency_ms=None),
        },
        curve=tuple(
            CurvePoint(method=method, macs_fraction=share, accuracy=share * level)
            for method, level in (("hap", 0.9), ("magnitude", 0.88), ("random", 0.3))
            for share in (0.9, 0.5)
        ),
        layers=(
            LayerWidth(name="stem", group="stem", dense=4, kept=3),
            LayerWidth(name="inner", group="inner", dense=8, kept=2),
            LayerWidth(name="outer", group="stem", dense=4, kept=3),
        ),
        table=(
            LayerRow(name="stem", width=(4, 3), macs=(400, 300), params=(40, 30), why="at its floor", ms=(0.5, 0.3)),
            LayerRow(name="head", width=(10, 10), macs=(100, 80), params=(10, 8), why="whole because <it> returns it"),
        ),
        seconds={"the dense model": 3.0, "fine-tuning, hap": 1.5},
        date="2026-11-29",
        loading='model = hp.load("model")',
        estimate=Estimate(method="hap", estimator="exact", kind="ggn", relative_error=0.0, num_samples=512),
        saliency=(
            GroupSaliency(group="stem", values=(0.1, 0.2, 0.3, 0.0), kept=(True, True, True, False)),
            GroupSaliency(group="inner", values=(0.01,) * 8, kept=(True, True) + (False,) * 6),
        ),
        history={"finetune": epochs},
        plan={"kept": {"stem": [0, 1, 2], "inner": [0, 1]}},
        settings={"seed": 7, "prune": {"budget": {"macs": 0.5}}},
        seeds={"run": 7},
        versions={"hessprune": "0.0"},
        environment={"latency_num_threads": 1},
        data={"name": "digits"},
        data_fingerprint="ab" * 32,
        notes=("Looked at <once>.",),
    )


def implanted_report() -> RunReport:
    """One unit of `inner` keeps a stand-in."""
    report = small_report()
    layers = (report.layers[0], replace(report.layers[1], kept=1, implanted=1), report.layers[2])
    saliency = (report.saliency[0], replace(report.saliency[1], implanted=(False, True) + (False,) * 6))
    return replace(report, layers=layers, saliency=saliency)


def bare_report() -> RunReport:
    """Only what a report must have."""
    return replace(RunReport(title="Net", models={"dense": result(0.9), "finetuned": result(0.9)}))
