"""Claims: everything runs in integers, half the MACs and INT8 together are fast, and accuracy stays.

Graphs: six networks, dense and pruned to half their MACs in multiples of 8 channels, as ONNX Runtime optimises them.
Latency: 1 thread, batch 32, interleaved; ratios within one run, of medians, and of 10th percentiles beside the peer.
Accuracy: pretrained CIFAR ResNets after calibration on 512 lossless training images, on 1 017 lossless test images and,
where more are needed, on 10 000 in JPEG, which cost those weights ten points. There and here the divergence KL(p ‖ p')
from the float model's predictions tells more than accuracy, one image of which is 0.1 points. The peer is ONNX
Runtime's own `quantize_static` on the same network and images, per channel, with full and with reduced range: the
better of both.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.lab.data import load_dataset
from hessprune.lab.data.dataset import Split
from hessprune.lab.models import build_model
from support.claims import Claims, arguments, spearman
from support.integers import Scores, by_the_peer, logits_of
from support.networks import MEAN, STD, noise, pretrained, warmed

FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Mul", "AveragePool", "Concat", "ReduceMean", "Pad"}
# 3.0 on two processors and 2.6 on a third, faster with floats: there its narrowest widths in integers reach 3.0.
SPEED_UPS = {"resnet56": 2.5, "vgg16-bn": 6.0}
NETWORKS = {"resnet20": 9, "preresnet29": 9, "vgg16-bn": 0, "densenet40": 0, "mobilenet-tiny": 3, "resnet56": 27}
OURS = {"7 bits": (7, "second-order"), "8 bits": (8, "second-order"), "7 bits, nearest": (7, "nearest")}
EXAMPLE = torch.zeros(2, 3, 32, 32)


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    repeats = 5 if options.quick else 20
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resnet20",) if options.quick else NETWORKS:
            graphs_and_latency(claims, name, Path(folder), repeats=repeats, pruned_only=options.quick)
        for depth in (20,) if options.quick else (20, 56):
            files = Files.make(depth, options.data_root, Path(folder), ("7 bits",) if options.quick else OURS)
            accuracy(claims, files, "lossless")
            agreement(claims, files)
            speed(claims, files, repeats=repeats)
            if depth == 20 and not options.quick:
                accuracy(claims, files, "JPEG")
    if not options.quick:
        sensitivity(claims, options.data_root)
    claims.write(options.out)


def graphs_and_latency(claims: Claims, name: str, folder: Path, *, repeats: int, pruned_only: bool) -> None:
    """Shows 1 and 2: operators of the optimised graphs, and how fast these run."""
    dense = warmed(build_model(name, num_classes=10))
    images = noise(256)
    settings = {"budget": hp.Budget(macs=0.5), "method": "magnitude", "ranking": hp.Ranking(round_to=8)}
    pruned = hp.prune(dense, EXAMPLE, [images], compensate=False, **settings).model
    files = {"dense": hp.export_onnx(dense, EXAMPLE, folder / f"{name}.onnx", check=False)}
    for kind, model in ({"pruned": pruned} | ({} if pruned_only else {"whole": dense})).items():
        int8 = hp.convert_qat(
            hp.calibrate(hp.prepare_qat(model, EXAMPLE), [images], method="minmax", rounding="nearest")
        )
        files[kind] = hp.export_onnx(int8, EXAMPLE, folder / f"{name}-{kind}.onnx", check=False)
        found = operators(files[kind])
        claims.at_most(f"{name}, {kind}: float operators in the INT8 graph", sum(found[kind] for kind in FLOAT), 0)
        if NETWORKS[name]:
            claims.at_least(f"{name}, {kind}: integer residual additions", found["QLinearAdd"], NETWORKS[name])
    times = hp.compare_latency(files, noise(32)[0], num_threads=1, repeats=repeats)
    dense_ms = times["dense"].median_ms
    target = SPEED_UPS.get(name, 1.0)
    claims.at_least(
        f"{name}: speed-up of half the MACs and INT8", dense_ms / times["pruned"].median_ms, target, dense_ms
    )
    size = files["dense"].stat().st_size / files["pruned"].stat().st_size
    claims.at_least(f"{name}: dense FP32 file / pruned INT8 file", size, 6 if name in SPEED_UPS else 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """One pretrained network, and its ONNX files: in FP32, by us, and by the peer."""

    name: str
    root: Path
    int8: nn.Module
    fp32: Path
    ours: dict[str, Path]
    peers: dict[str, Path]

    @classmethod
    def make(cls, depth: int, root: Path, folder: Path, kinds: Iterable[str]) -> "Files":
        """Calibrate and write all of them."""
        name, model, calibration = f"resnet{depth}", pretrained(depth, root), list(images_of("calibration", root))
        fp32 = hp.export_onnx(model, EXAMPLE, folder / f"{name}-trained.onnx", check=False)
        models = {}
        for kind in kinds:
            prepared = hp.prepare_qat(model, EXAMPLE, weight_bits=OURS[kind][0])
            models[kind] = hp.convert_qat(hp.calibrate(prepared, calibration, rounding=OURS[kind][1]))
        ours = {
            kind: hp.export_onnx(int8, EXAMPLE, folder / f"{name}-{kind}.onnx", check=False)
            for kind, int8 in models.items()
        }
        peers = {
            kind: by_the_peer(fp32, calibration, folder / f"{name}-{kind}.onnx", kind) for kind in ("full", "reduced")
        }
        return cls(name=name, root=root, int8=models["7 bits"], fp32=fp32, ours=ours, peers=peers)


def accuracy(claims: Claims, files: Files, kind: str) -> None:
    """Show 3: INT8 after calibration alone, by us and by the peer, against the float model."""
    test = list(images_of("test", files.root, kind))
    labels, reference = torch.cat([targets for _, targets in test]), logits_of(files.fp32, test)
    head, found = f"{files.name}, {len(labels)} {kind}", {}
    for name, path in (files.ours | files.peers).items():
        found[name] = Scores.of(logits_of(path, test), reference, labels)
    best = {
        "accuracy": max(files.peers, key=lambda name: found[name].accuracy),
        "divergence": min(files.peers, key=lambda name: found[name].divergence),
    }
    ours, float_accuracy = found["7 bits"], Scores.of(reference, reference, labels).accuracy
    claims.at_least(f"{head}: INT8 − FP32, points", ours.accuracy - float_accuracy, -0.5, float_accuracy)
    peer = found[best["accuracy"]]
    noise_points = 100 * (2 * (1 - ours.agreement) / len(labels)) ** 0.5
    claims.at_least(
        f"{head}: ours − quantize_static ({best['accuracy']} range), points, at least −2 standard errors",
        ours.accuracy - peer.accuracy,
        round(-2 * noise_points, 2),
        peer.accuracy,
    )
    peer = found[best["divergence"]]
    for name in sorted(files.ours.keys() - {"7 bits, nearest"}):
        text = f"{head}: divergence with {name} / quantize_static ({best['divergence']} range)"
        claims.at_most(text, found[name].divergence / peer.divergence, 1, peer.divergence)
    if "7 bits, nearest" in found:
        nearest = found["7 bits, nearest"].divergence
        claims.at_least(f"{head}: divergence, nearest / second-order", nearest / ours.divergence, 1.3, nearest)
    claims.at_least(f"{head}: same prediction as FP32", ours.agreement, peer.agreement, peer.agreement)


def agreement(claims: Claims, files: Files) -> None:
    """Show 4: torch and ONNX Runtime on 1 000 images; steps are 255ths of the range of logits.

    Both compute in integers, by the same formulas where the processor has AVX2, and are then equal bit for bit.
    """
    test = list(images_of("test", files.root))
    labels = torch.cat([targets for _, targets in test])[:1000]
    torch_logits, runtime_logits = (logits_of(model, test)[:1000] for model in (files.int8, files.ours["7 bits"]))
    steps = (torch_logits - runtime_logits).abs() * 255 / (torch_logits.max() - torch_logits.min())
    accuracies = [float((logits.argmax(1) == labels).float().mean()) for logits in (torch_logits, runtime_logits)]
    claims.at_most(f"{files.name}: |torch − ONNX Runtime|, points", 100 * abs(accuracies[0] - accuracies[1]), 0.1)
    within = float((steps <= 1).float().mean())
    claims.at_least(f"{files.name}: share of logits within one step of each other", within, 0.99)
    claims.at_most(f"{files.name}: largest difference of logits, steps", float(steps.max()), 1)


def speed(claims: Claims, files: Files, *, repeats: int) -> None:
    """Show 3: latency of ours and of the peer's; in rounds of their own, as what follows a larger model runs cold."""
    int8 = {**files.ours, **files.peers}
    for batch_size in (1, 32):
        inputs, head = noise(batch_size)[0], f"{files.name}, batch {batch_size}"
        rounds = repeats * 64 // batch_size
        times = hp.compare_latency(int8, inputs, num_threads=1, repeats=rounds)
        fastest = min(times[kind].p10_ms for kind in files.peers)
        claims.at_most(f"{head}: latency / quantize_static", times["7 bits"].p10_ms / fastest, 1.02, fastest)
        if "8 bits" in times:
            ratio = times["8 bits"].p10_ms / times["7 bits"].p10_ms
            claims.at_least(f"{head}: latency with 8 bits / with 7 bits", ratio, 0.95)
        pair = hp.compare_latency({"fp32": files.fp32, "int8": files.ours["7 bits"]}, inputs, repeats=rounds // 2)
        claims.at_least(f"{head}: speed-up of INT8 alone", pair["fp32"].p10_ms / pair["int8"].p10_ms, 1)


def sensitivity(claims: Claims, root: Path) -> None:
    """The estimate of what rounding a layer costs, beside the measured cost; and that no layer has to stay in FP32."""
    model, calibration = pretrained(20, root), list(images_of("calibration", root))
    found, seconds = {}, {}
    for method in ("measured", "curvature", "trace"):
        started = time.perf_counter()
        found[method] = hp.quantization_sensitivity(model, EXAMPLE, calibration, method=method)
        seconds[method] = time.perf_counter() - started
    for part, bound in (("weights", 0.9), ("total", 0.7)):
        columns = [
            torch.tensor([getattr(found[method][name], part) for name in found["measured"]])
            for method in ("curvature", "measured", "trace")
        ]
        rank, by_trace = spearman(*columns[:2]), spearman(*columns[1:])
        claims.at_least(f"resnet20: rank correlation of sensitivity with measured, {part}", rank, bound, by_trace)
    claims.at_most("resnet20: seconds of estimate / of measuring", seconds["curvature"] / seconds["measured"], 0.7)
    kept = hp.choose_fp32_layers(model, EXAMPLE, calibration)
    claims.at_most("resnet20: layers that must stay in FP32 to lose at most 0.5 points", len(kept), 0)


@cache
def images_of(split: Split, root: Path, kind: str = "lossless") -> list[tuple[Tensor, Tensor]]:
    """Return a split, normalised as the weights expect."""
    source, folder = {"lossless": ("npz", root), "JPEG": ("parquet", root / "cifar10_jpeg")}[kind]
    data = load_dataset(source, root=folder, calibration_size=512).with_normalisation(MEAN, STD)
    return list(data.batches(split, 128, shuffle=False))


def operators(path: Path) -> Counter[str]:
    """Return how often each operator is in the graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


if __name__ == "__main__":
    main()
