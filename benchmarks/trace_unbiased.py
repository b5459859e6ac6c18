"""Claim: the stochastic estimators are unbiased, and their stated errors are their spread.

n = 200 seeds (40 in a quick run) on lossless CIFAR-10 images, pretrained ResNet-20, all output channels. The mean over
seeds must lie within five of its standard errors of the exact trace; the stated error, root mean square over seeds,
must match the spread over seeds within 20 %, and a ratio of two spreads is itself known to `1/√(2 n)`.
"""

import math

import torch
from torch import Tensor

from hessprune.curvature import TraceOptions, block_traces
from support.claims import Claims, arguments
from support.networks import channels, images, joined, pretrained

RUNS = {"rademacher": 2, "hutchinson": 4}


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    seeds, number = (40, 8) if options.quick else (200, 16)
    model, batches = pretrained(20, options.data_root), [images(options.data_root, number)]
    truth = joined(block_traces(model, channels(model), batches).values)
    for estimator, probes in RUNS.items():
        settings = TraceOptions(num_probes=probes)
        runs = [
            block_traces(model, channels(model), batches, estimator=estimator, seed=seed, options=settings)
            for seed in range(seeds)
        ]
        values = torch.stack([joined(run.values) for run in runs])
        stated = torch.stack([joined(run.standard_error or {}) for run in runs])
        report(claims, f"{estimator}, {probes} draws, {seeds} seeds", values, stated, truth)
    claims.write(options.out)


def report(claims: Claims, name: str, values: Tensor, stated: Tensor, truth: Tensor) -> None:
    """Compare mean and spread over seeds with the exact traces and the stated errors, both `(seeds, U)`."""
    spread = values.std(0)
    alive = spread > 1e-9 * truth.max()
    away = (values.mean(0) - truth).abs() / (spread / math.sqrt(len(values)))
    ratio = stated.square().mean(0).sqrt() / spread
    claims.at_most(f"{name}: largest distance of a channel's mean, in standard errors", float(away[alive].max()), 5)
    for part, value in {"median channel": ratio[alive].median(), "all channels": _pooled(stated, spread)}.items():
        holds = 0.8 <= float(value) <= 1.2
        claims.add(f"{name}: stated error / spread, {part}", float(value), "0.8 to 1.2", holds=holds)


def _pooled(stated: Tensor, spread: Tensor) -> Tensor:
    return stated.square().mean().sqrt() / spread.square().mean().sqrt()


if __name__ == "__main__":
    main()
