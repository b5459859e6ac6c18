r"""HAP's estimator: Rademacher probes over all weights, `X_u = v_uᵀ (H v)_u`, averaged.

The estimate is unbiased for the true Hessian's trace, with any activation. Its variance is
`Var X_u = 2 (‖H_uu‖² − ‖diag H_uu‖²) + Σ_{j≠u} ‖H_uj‖²`: every other unit adds noise, and a ranking needs hundreds of
probes.

References:
    Yu et al. (2022), Hessian-Aware Pruning and Optimal Neural Implant, arXiv 2101.08940.
    Chong, Gupta & Chen (2023), Resource Efficient Neural Networks Using Hessian Based Pruning, arXiv 2306.07030.
"""

import zlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessprune.curvature.draws import Rows
from hessprune.curvature.moments import Moments
from hessprune.curvature.problem import Problem
from hessprune.curvature.products import ProductMode
from hessprune.curvature.repeat import own_stream, repeated
from hessprune.foundation.processes import summed
from hessprune.foundation.trees import sample_rows
from hessprune.objectives.objective import BatchLoss


def hutchinson_probes(problem: Problem, probes: range, seed: int) -> tuple[Tensor, Moments]:
    """Return the sums of `X_u` over samples for every probe, `(len(probes), U)`, with counters.

    Args:
        problem: The model, the readout and the data.
        probes: Indices of the probes; each index gives other random numbers.
        seed: The user's seed.

    Returns:
        The sums by probe, before division by the weight `W`, and the counters.
    """
    moments = Moments.zeros(problem.readout.num_units)
    sums = torch.zeros(len(probes), problem.readout.num_units, dtype=torch.float64, device="cpu")
    for _, inputs, loss in problem.each_batch("Hessian probes"):
        if not len(loss.counted()):
            moments.count(loss.samples, 0.0)
            continue
        rows, dropped, total = _needed(problem, problem.values(inputs, loss), loss)
        for part in rows.split(problem.chunk_size):
            if loss.weight(part):  # a mean over ignored labels alone is not a number
                sums += _chunk(problem, inputs, loss, part, probes, seed)
                moments.num_backwards += len(probes) + 1
        moments.count(loss.samples, loss.weight(), dropped, total)
    return summed(sums), moments.over_processes()


def _needed(problem: Problem, values: Tensor, loss: BatchLoss) -> tuple[Tensor, float, float]:
    """Return the relevant samples, the relevance of those left out, and that of all."""
    weights = loss.relevance(values)
    if weights is None or not problem.tolerance:
        return torch.arange(len(values), device=values.device), 0.0, 0.0
    rising, order = weights.sort()
    spare = int((rising.cumsum(0) <= problem.tolerance * rising.sum()).sum())
    return order[spare:].sort().values, float(rising[:spare].sum()), float(rising.sum())


def _chunk(problem: Problem, inputs: Any, loss: BatchLoss, rows: Tensor, probes: range, seed: int) -> Tensor:
    """Return the contribution of one chunk to every probe, `(len(probes), U)`."""
    weight, device = loss.weight(rows), problem.device
    done: list[Tensor] = []
    directions = _Directions(problem, seed)

    def remaining(scale: float) -> Tensor:
        """Take the remaining probes, all on one graph, at one loss scale."""
        mode = ProductMode(problem.folded, problem.readout, problem.objective.read)
        try:
            with problem.precision.casting(device):
                outputs = mode.forward(sample_rows(inputs, rows))
            mode.differentiate(loss.loss(outputs.to(problem.precision.dtype), rows) * scale)
            missing = probes[len(done) :]
            step = repeated(lambda index: mode.product(directions(index)) / scale, len(missing), device)
            for probe in missing:
                product = step(torch.tensor(probe, device=device))
                if not bool(torch.isfinite(product).all()):
                    return product
                done.append(product.cpu())
        finally:
            mode.close()
        return torch.zeros((), device="cpu")

    with sdpa_kernel(SDPBackend.MATH), own_stream(device):  # the fused kernels have no second derivative
        problem.precision.finite(remaining)
    return torch.stack(done) * weight


class _Directions:
    """Signs of a probe by weight, in the coordinates of the folded weights."""

    def __init__(self, problem: Problem, seed: int) -> None:
        named = problem.folded.model.named_parameters()
        self._seed, self._scale = seed, problem.folded.scale
        self._weights = {name: weight for name, weight in named if name in problem.readout.axes}
        streams = torch.cat([_stream_of(name) for name in self._weights]).to(problem.device)
        self._rows = Rows(streams, [weight.numel() for weight in self._weights.values()])

    def __call__(self, probe: Tensor) -> dict[str, Tensor]:
        """Return the signs of the probe with this index."""
        rows = zip(self._weights.items(), self._rows.draw(seed=self._seed, draw=probe), strict=True)
        return {name: self._scaled(name, weight, row.view(weight.shape)) for (name, weight), row in rows}

    def _scaled(self, name: str, weight: Tensor, v: Tensor) -> Tensor:
        return v * self._scale[name].to(weight.dtype) if name in self._scale else v.to(weight.dtype)


def _stream_of(name: str) -> Tensor:
    """Return the number of a weight's random stream."""
    return torch.tensor([zlib.crc32(name.encode())], device="cpu")
