"""Claim: the same quantities on the same data at least three times as fast as every peer, on the peer's own ground.

n = 336 lossless CIFAR-10 images and a sequential network that all peers support, as it is initialised. Each peer is
imported and set up before the clock starts; times are the shortest of rounds. Peers that are not installed are skipped
by name (pip install --no-deps pyhessian backpack-for-pytorch curvlinops-for-pytorch). Those that draw products draw 100
of them; a quick run draws 5, and scales their time up.
"""

import contextlib
import copy
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessprune.curvature import TraceOptions, block_traces
from support.claims import Claims, arguments, interleaved
from support.networks import channels, images, joined, plain_network, weights

Batches = list[tuple[Tensor, Tensor]]
PRODUCTS = 100


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What a peer computes, and which of our estimators computes the same."""

    package: str
    estimator: str
    run: Callable[[int], Tensor]
    """From the number of products, if it draws any, to the traces or their sum."""
    draws: bool = False


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    model, batches = plain_network(), [images(options.data_root)]
    for name, peer in peers(model, batches).items():
        compare(claims, name, peer, model, batches, options.quick)
    claims.write(options.out)


def peers(model: nn.Module, batches: Batches) -> dict[str, Peer]:
    """Return all peers."""
    data = batches[0]
    return {
        "BackPACK DiagGGNExact": Peer(
            package="backpack", estimator="exact", run=lambda _: backpack_diagonal(model, *data, "DiagGGNExact")
        ),
        "BackPACK DiagGGNMC": Peer(
            package="backpack", estimator="rademacher", run=lambda _: backpack_diagonal(model, *data, "DiagGGNMC")
        ),
        "curvlinops GGN diagonal": Peer(
            package="curvlinops", estimator="exact", run=lambda n: curvlinops_diagonal(model, batches, n), draws=True
        ),
        "PyHessian whole trace": Peer(
            package="pyhessian", estimator="exact", run=lambda n: pyhessian_trace(model, *data, n), draws=True
        ),
    }


def compare(claims: Claims, name: str, peer: Peer, model: nn.Module, batches: Batches, quick: bool) -> None:
    """Compare one peer's time with ours, and say how far its result lies from the exact one."""
    try:
        importlib.import_module(peer.package)
    except ImportError as error:
        claims.add(f"{name} / ours", f"peer not installed: {error}", ">= 3", holds=None)
        return
    products, results = (5 if quick else PRODUCTS) if peer.draws else 1, []

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(peer.run(products))

    def ours() -> Tensor:
        settings = TraceOptions(num_probes=1)
        return joined(block_traces(model, channels(model), batches, estimator=peer.estimator, options=settings).values)

    times = interleaved({"ours": ours}, 5) | interleaved({"theirs": theirs}, 1 if peer.draws else 5)
    seconds = times["theirs"] * (PRODUCTS / products if peer.draws else 1)
    exact = joined(block_traces(model, channels(model), batches).values)
    difference = float((results[0] - (exact if results[0].dim() else exact.sum())).abs().sum() / exact.sum())
    title = f"{name} / ours {peer.estimator} (differs by {difference:.1%})"
    claims.at_least(title, seconds / times["ours"], 3, peer=seconds)


def backpack_diagonal(model: nn.Module, inputs: Tensor, targets: Tensor, extension: str) -> Tensor:
    """Return the diagonal Gauss–Newton matrix summed over each channel, by BackPACK."""
    import backpack
    from backpack import extensions

    model = backpack.extend(copy.deepcopy(model))
    loss = backpack.extend(nn.CrossEntropyLoss())(model(inputs), targets)
    with backpack.backpack(getattr(extensions, extension)()):
        loss.backward()
    attribute = {"DiagGGNExact": "diag_ggn_exact", "DiagGGNMC": "diag_ggn_mc"}[extension]
    return torch.cat([getattr(value, attribute).flatten(1).sum(1) for value in weights(model).values()]).double()


def curvlinops_diagonal(model: nn.Module, batches: Batches, products: int) -> Tensor:
    """Return the same by curvlinops: Hutchinson's estimate of the diagonal."""
    import curvlinops

    tensors = weights(model)
    operator = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), list(tensors.values()), batches)
    diagonal = torch.as_tensor(curvlinops.hutchinson_diag(operator, num_matvecs=products))
    sizes = [value.numel() for value in tensors.values()]
    parts = zip(diagonal.detach().split(sizes), tensors.values(), strict=True)
    return torch.cat([part.view_as(value).flatten(1).sum(1) for part, value in parts]).double()


def pyhessian_trace(model: nn.Module, inputs: Tensor, targets: Tensor, products: int) -> Tensor:
    """Return the trace of the whole Hessian, by PyHessian at its default effort.

    Its tolerance is switched off: it is compared with a signed quantity, so that a negative estimate stops the loop.
    """
    import pyhessian

    with contextlib.redirect_stdout(None):
        computer = pyhessian.hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), data=(inputs, targets), cuda=False)
        return torch.tensor(computer.trace(maxIter=products, tol=float("-inf"))).mean().double()


if __name__ == "__main__":
    main()
