"""Small networks with every structure that quantisers are placed for, and what ONNX Runtime makes of them."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from hessprune.foundation.state import seeded
from hessprune.lab.models.densenet import DenseNet
from hessprune.lab.models.layers import initialise
from hessprune.lab.models.mobilenet import InvertedResidual
from hessprune.lab.models.preresnet import PreResNet
from hessprune.lab.models.resnet import ResNet
from hessprune.lab.models.vgg import VGG

SHAPE = (3, 16, 16)


class Inverted(nn.Module):
    """A stem and one inverted residual: depthwise convolution, squeeze-and-excitation, hard gates, an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), InvertedResidual(8, 8, 1, expansion=2)
        self.head = nn.Linear(8, 5)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


BUILDERS = {
    "resnet": lambda: ResNet(8, 5, width=4),
    "preresnet": lambda: PreResNet(11, 5, width=4),
    "vgg": lambda: VGG(11, 5, width=1 / 16),
    "densenet": lambda: DenseNet(7, 5, growth=4),
    "inverted": Inverted,
}


def network(name: str) -> nn.Module:
    """Return a network with statistics and affine parameters that a wrong folding of BatchNorm would show."""
    with seeded(0):
        model = BUILDERS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
        with torch.no_grad():
            for _ in range(10):
                model.train()(images(32))
    return model.eval()


def images(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed))


def batches(number: int = 32) -> list[tuple[Tensor, Tensor]]:
    return [(images(number, seed), torch.arange(number) % 5) for seed in range(2)]


def operators(path: Path) -> Counter[str]:
    """Return how often each operator is in the graph that ONNX Runtime runs."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
