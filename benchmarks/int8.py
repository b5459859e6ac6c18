"""Claims: everything runs in integers, half the MACs and INT8 together are fast, and accuracy stays.

Graphs: six networks, dense and pruned to half their MACs in multiples of 8 channels, as ONNX Runtime optimises them.
Latency: 1 thread, batch 32, interleaved; ratios of medians within one run, for a quiet machine. Accuracy: pretrained
CIFAR ResNets on 1 017 lossless test images, after calibration on 512 others, and against ONNX Runtime's own
`quantize_static` on the same network and images: per channel, with full and with reduced range, the better of both.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import hessprune as hp
from hessprune.data import load_dataset
from hessprune.latency import OnnxModel
from hessprune.models import build_model
from support.claims import Claims, arguments
from support.networks import MEAN, STD, pretrained

FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "AveragePool", "Concat", "ReduceMean"}
NETWORKS = {"resnet20": 9, "preresnet29": 9, "vgg16-bn": 0, "densenet40": 0, "mobilenet-tiny": 3, "resnet56": 27}
EXAMPLE = torch.zeros(2, 3, 32, 32)


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    with tempfile.TemporaryDirectory() as folder:
        networks = ("resnet20",) if options.quick else tuple(NETWORKS)
        for name in networks:
            graphs_and_latency(
                claims, name, Path(folder), repeats=5 if options.quick else 30, pruned_only=options.quick
            )
        for depth in (20,) if options.quick else (20, 56):
            accuracy(claims, depth, options.data_root, Path(folder), repeats=5 if options.quick else 30)
    claims.write(options.out)


def graphs_and_latency(claims: Claims, name: str, folder: Path, *, repeats: int, pruned_only: bool) -> None:
    """Shows 1 and 2: operators of the optimised graphs, and how fast these run."""
    dense = warmed(build_model(name, num_classes=10))
    images = noise(256)
    settings = {"budget": hp.Budget(macs=0.5), "method": "magnitude", "ranking": hp.Ranking(round_to=8)}
    pruned = hp.prune(dense, EXAMPLE, [images], compensate=False, **settings).model
    files = {"dense": hp.export_onnx(dense, EXAMPLE, folder / f"{name}.onnx", check=False)}
    for kind, model in ({"pruned": pruned} | ({} if pruned_only else {"whole": dense})).items():
        int8 = hp.convert_qat(hp.calibrate(hp.prepare_qat(model, EXAMPLE), [images], method="minmax"))
        files[kind] = hp.export_onnx(int8, EXAMPLE, folder / f"{name}-{kind}.onnx", check=False)
        found = operators(files[kind])
        claims.at_most(f"{name}, {kind}: float operators in the INT8 graph", sum(found[kind] for kind in FLOAT), 0)
        if NETWORKS[name]:
            claims.at_least(f"{name}, {kind}: integer residual additions", found["QLinearAdd"], NETWORKS[name])
    times = hp.compare_latency(files, noise(32)[0], num_threads=1, repeats=repeats)
    dense_ms = times["dense"].median_ms
    target = {"resnet56": 3.0, "vgg16-bn": 6.0}.get(name, 1.0)
    claims.at_least(
        f"{name}: speed-up of half the MACs and INT8", dense_ms / times["pruned"].median_ms, target, dense_ms
    )
    size = files["dense"].stat().st_size / files["pruned"].stat().st_size
    claims.at_least(f"{name}: dense FP32 file / pruned INT8 file", size, 6 if name in {"resnet56", "vgg16-bn"} else 1)


def accuracy(claims: Claims, depth: int, root: Path, folder: Path, *, repeats: int) -> None:
    """Shows 3 and 4: INT8 after calibration alone, in torch, in ONNX Runtime, and by the peer."""
    name, model = f"resnet{depth}", pretrained(depth, root)
    data = load_dataset("npz", root=root, calibration_size=512).with_normalisation(MEAN, STD)
    calibration, test = (
        list(data.batches("calibration", 128, shuffle=False)),
        list(data.batches("test", 256, shuffle=False)),
    )
    dense = hp.export_onnx(model, EXAMPLE, folder / f"{name}-trained.onnx", check=False)
    int8 = hp.convert_qat(hp.calibrate(hp.prepare_qat(model, EXAMPLE), calibration))
    ours = hp.export_onnx(int8, EXAMPLE, folder / f"{name}-ours.onnx", check=False)
    peers = {
        kind: by_the_peer(dense, calibration, folder / f"{name}-{kind}.onnx", kind) for kind in ("full", "reduced")
    }
    found = {"fp32": hp.evaluate(model, test).accuracy, "torch": hp.evaluate(int8, test).accuracy}
    found |= {kind: hp.evaluate(path, test).accuracy for kind, path in {"ours": ours, **peers}.items()}
    best = max(peers, key=lambda kind: found[kind])
    claims.at_least(f"{name}: INT8 − FP32, points, calibration alone", 100 * (found["ours"] - found["fp32"]), -0.5)
    claims.at_least(f"{name}: ours − quantize_static ({best} range), points", 100 * (found["ours"] - found[best]), 0)
    claims.at_most(f"{name}: |torch − ONNX Runtime|, points", 100 * abs(found["torch"] - found["ours"]), 0.1)
    steps = logit_steps(int8, ours, test)
    claims.at_least(f"{name}: share of logits within one step of each other", float((steps <= 1).float().mean()), 0.99)
    claims.at_most(f"{name}: largest difference of logits, steps", float(steps.max()), 1)
    times = hp.compare_latency({"dense": dense, "ours": ours, **peers}, noise(32)[0], num_threads=1, repeats=repeats)
    fastest = min(times[kind].median_ms for kind in peers)
    claims.at_most(f"{name}: latency / quantize_static", times["ours"].median_ms / fastest, 1.02, fastest)
    claims.at_least(f"{name}: speed-up of INT8 alone", times["dense"].median_ms / times["ours"].median_ms, 1)


def logit_steps(model: nn.Module, path: Path, test: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return |torch − ONNX Runtime| of every logit of 1 000 images, in 255ths of the range of logits."""
    runtime, images = OnnxModel(path), torch.cat([inputs for inputs, _ in test])[:1000]
    with torch.no_grad():
        logits = model(images)
    return (logits - runtime(images)).abs() * 255 / (logits.max() - logits.min())


class Reader(CalibrationDataReader):
    """Hands batches to the peer."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch[0].numpy()}


def by_the_peer(path: Path, calibration: list[tuple[Tensor, Tensor]], out: Path, kind: str) -> Path:
    """Quantise with ONNX Runtime's own tool, per channel, in its recommended format."""
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(path, prepared)
    quantize_static(
        prepared,
        out,
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=kind == "reduced",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def operators(path: Path) -> Counter[str]:
    """Return how often each operator is in the graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def warmed(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that fit its inputs."""
    with torch.no_grad():
        model.train()(noise(64)[0])
    return model.eval()


def noise(number: int) -> tuple[Tensor, Tensor]:
    """Return normal images, for what does not depend on their content."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, 32, 32, generator=generator), torch.arange(number) % 10


if __name__ == "__main__":
    main()
