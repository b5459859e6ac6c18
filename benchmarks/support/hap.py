"""The HAP procedure as published, plainly: FP32, unfolded, one retained graph, products reduced channel by channel."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.networks import weights


class PlainHap:
    """Rademacher probes by differentiating twice in reverse mode."""

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self._tensors = list(weights(model).values())
        loss = F.cross_entropy(model(inputs), targets)
        self._gradients = torch.autograd.grad(loss, self._tensors, create_graph=True)

    def probe(self) -> Tensor:
        """Return `v_cᵀ (H v)_c` of every channel for one probe."""
        v = [torch.randint_like(tensor, 2) * 2 - 1 for tensor in self._tensors]
        products = torch.autograd.grad(self._gradients, self._tensors, v, retain_graph=True)
        return torch.cat([(a * b).flatten(1).sum(1) for a, b in zip(v, products, strict=True)])

    def means(self, numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield the mean over the first `n` probes, for each of `numbers` in turn."""
        total = torch.zeros(())
        for taken in range(1, max(numbers) + 1):
            total = total + self.probe()
            if taken in numbers:
                yield taken, total.double() / taken
