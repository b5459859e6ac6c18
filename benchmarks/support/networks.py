"""The networks and images of the benchmarks, and the units they are scored by."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hessprune.curvature import ParamSlice, TraceOptions, TraceResult, block_traces
from hessprune.lab.data import ImageBatches, load_dataset
from hessprune.lab.models import build_model, load_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pretrained(depth: int, root: Path) -> nn.Module:
    """Return the CIFAR ResNet of that depth with the published weights."""
    model = build_model(f"resnet{depth}", num_classes=10)
    load_weights(model, next((root / "weights").glob(f"resnet{depth}-*")))
    return model.eval()


def images(root: Path, number: int = 336) -> tuple[Tensor, Tensor]:
    """Return lossless CIFAR-10 images and their labels, normalised as the weights expect."""
    arrays = load_dataset("npz", root=root).train.subset(torch.arange(number))
    return next(iter(ImageBatches(arrays, batch_size=number, mean=MEAN, std=STD)))


def probes(model: nn.Module, batches: list[tuple[Tensor, Tensor]], number: int, precision: str) -> TraceResult:
    """Return the traces of all output channels from that many probes."""
    options = TraceOptions(num_probes=number)
    return block_traces(model, channels(model), batches, estimator="hutchinson", precision=precision, options=options)


def plain_network(seed: int = 0) -> nn.Sequential:
    """Return a sequential network that every peer supports: no residuals, no BatchNorm, no biases."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(64, 10, bias=False),
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of convolutions and linear maps by name."""
    return {name: value for name, value in model.named_parameters() if value.dim() > 1}


def channels(model: nn.Module) -> dict[str, list[ParamSlice]]:
    """Return one unit for every output channel of every layer."""
    return {
        name: [ParamSlice(param=name, dim=0, index=torch.arange(len(value))[:, None])]
        for name, value in weights(model).items()
    }


def saliency(model: nn.Module, traces: dict[str, Tensor]) -> Tensor:
    """Return HAP's saliency `Tr(H_cc) ‖w_c‖² / (2 numel(w_c))` of all channels in one vector."""
    return torch.cat([
        traces[name] * value.detach().double().flatten(1).square().sum(1) / (2 * value[0].numel())
        for name, value in weights(model).items()
    ])


def joined(traces: dict[str, Tensor]) -> Tensor:
    """Return the traces of all channels in one vector."""
    return torch.cat(list(traces.values()))


def warmed(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that fit its inputs."""
    with torch.no_grad():
        model.train()(noise(64)[0])
    return model.eval()


def noise(number: int) -> tuple[Tensor, Tensor]:
    """Return normal images, for what does not depend on their content."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, 32, 32, generator=generator), torch.arange(number) % 10
