"""The last stages of a run: from the fine-tuned model to integers that ONNX Runtime runs."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hessprune.deploy.export import export_onnx
from hessprune.deploy.onnx_model import OnnxModel
from hessprune.foundation.files import read_json, write_json
from hessprune.lab.context import Model, Run
from hessprune.lab.settings import QuantizeSettings, as_json
from hessprune.lab.stages import export, quality
from hessprune.quantize.choice import choose_fp32_layers
from hessprune.quantize.qat import calibrate, convert_qat, prepare_qat
from hessprune.training.finetune import finetune

FILE = "int8.onnx"


def quantize(run: Run, parent: Model, settings: QuantizeSettings) -> Model:
    """Calibrate, train with rounding, convert and export; a killed training continues from its checkpoints."""
    config = replace(settings.train, seed=settings.train.seed + run.settings.seed)
    section = run.settings.data
    train = run.data.batches("train", section.batch_size, augment=section.augment, seed=config.seed)

    def make(folder: Path) -> None:
        prepared = prepare_qat(
            parent.model,
            run.example,
            target=settings.target,
            activations=settings.activations,
            weight_bits=settings.weight_bits,
            keep_fp32=_kept(run, parent, settings),
            dynamic_length=run.data.has_lengths,
        )
        calibrated = calibrate(prepared, run.batches("calibration"))
        trained = finetune(
            calibrated,
            train,
            run.batches("validation"),
            config=config,
            loss_fn=run.loss_fn,
            metric=run.metric,
            teacher=parent.model,
            checkpoint_dir=folder / "partial",
        )
        lengths = run.data.has_lengths
        export_onnx(convert_qat(trained.model), run.example, folder / FILE, dynamic_length=lengths)
        history = [asdict(record) for record in trained.history]
        write_json(folder / "quantize.json", {"history": history, "fp32_layers": prepared.fp32_layers})
        shutil.rmtree(folder / "partial", ignore_errors=True)

    stage = run.store.run("8-int8", make, parent.stage, as_json(settings), as_json(section), *run.data_key)
    return Model(
        model=OnnxModel(stage.file(FILE)), stage=stage, history=read_json(stage.file("quantize.json"))["history"]
    )


def _kept(run: Run, parent: Model, settings: QuantizeSettings) -> Sequence[str] | Mapping[str, str]:
    """Return what the recipe keeps in FP32, or what accuracy on the validation images demands."""
    if settings.keep_fp32 != "auto":
        return settings.keep_fp32
    return choose_fp32_layers(
        parent.model,
        run.example,
        run.batches("calibration"),
        tolerance=settings.tolerance,
        validation=run.batches("validation"),
        scheme=settings.scheme,
        dynamic_length=run.data.has_lengths,
    )


def measure_file(run: Run, model: Model, parent: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `measure` returns, of the file as it runs; its MACs and parameters are those of its parent."""

    def make(folder: Path) -> None:
        size = model.stage.file(FILE).stat().st_size
        write_json(folder / "result.json", dict(parent) | quality(run, model.model) | {"size_bytes": size})

    stage = run.store.run("8-measured-int8", make, model.stage, dict(parent), *run.data_key)
    return read_json(stage.file("result.json"))


def onnx_files(run: Run, dense: Model, finetuned: Model, int8: Model) -> dict[str, Path]:
    """Return the files that are timed beside each other; the pruned model is the fine-tuned one with other numbers."""
    smaller = export(run, "finetuned", finetuned)
    return {
        "dense": export(run, "dense", dense),
        "pruned": smaller,
        "finetuned": smaller,
        "int8": int8.stage.file(FILE),
    }
