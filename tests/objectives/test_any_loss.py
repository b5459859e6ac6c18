"""Losses without a closed form: their curvature, exact where it can be, else the empirical Fisher."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import NumericalError, UnsupportedModelError
from hessprune.objectives.any_loss import AnyLoss
from hessprune.objectives.outputs import Outputs


def seen(loss_fn: Any, output: Any, targets: Any) -> tuple[AnyLoss, Tensor]:
    def rows(tree: Any, count: int) -> Any:
        return {k: v[:count] for k, v in tree.items()} if isinstance(tree, dict) else tree[:count]

    outputs = Outputs.find(rows(output, 2), rows(output, 1))
    samples = len(next(iter(output.values()))) if isinstance(output, dict) else len(output)
    loss, values = AnyLoss(loss_fn, outputs, targets, samples), outputs.read(output, samples)
    loss.see([(output, samples)], values)
    return loss, values


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def hessians(loss: AnyLoss, values: Tensor) -> Tensor:
    """Return the Hessian of every sample's loss, from the batch loss by automatic differentiation."""
    n, size = len(values), values[0].numel()
    whole = torch.autograd.functional.hessian(lambda v: n * loss.loss(v, torch.arange(n)), values)
    return whole.reshape(n, size, n, size)[torch.arange(n), :, torch.arange(n)]


def square(loss: AnyLoss, values: Tensor) -> Tensor:
    factor = loss.factor(values)
    n, rows = len(values), torch.arange(len(values))
    columns = [factor.columns(rows, torch.full((n,), k)).reshape(n, -1) for k in range(factor.mass.shape[1])]
    return torch.einsum("nak,nbk->nab", *[torch.stack(columns, 2)] * 2)


EXACT = {
    "smooth and mixed": (lambda f, y: (torch.logsumexp(1.5 * f, 1) + (f - y[:, None]).square().sum(1)).mean(), (4, 3)),
    "squares of an image": (lambda f, y: (f - y[:, None, None, None]).square().mean(), (4, 2, 5, 5)),
    "logarithm of a cosine": (lambda f, y: (f - y[:, None]).cosh().log().mean(), (4, 40)),
    "coupled over 40": (lambda f, y: torch.logsumexp(f * (1 + y[:, None].abs()), 1).mean(), (4, 40)),
}


@pytest.mark.parametrize("name", EXACT)
def test_curvature_is_that_of_automatic_differentiation(name: str) -> None:
    loss_fn, shape = EXACT[name]
    loss, values = seen(loss_fn, numbers(*shape), numbers(shape[0]))
    torch.testing.assert_close(square(loss, values), hessians(loss, values), rtol=1e-9, atol=1e-11)
    assert loss.curvature == "Hessian of the loss"


def dice(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid().flatten(1)
    return (1 - (2 * (p * target.flatten(1)).sum(1) + 1) / (p.sum(1) + target.flatten(1).sum(1) + 1)).mean()


def ctc(output: Tensor, target: Tensor) -> Tensor:
    n, _, time = output.shape
    lengths = torch.full((n,), time), torch.full((n,), target.shape[1])
    return F.ctc_loss(output.log_softmax(1).permute(2, 0, 1), target, *lengths, reduction="none").mean()


FISHER = {
    "absolute": (lambda f, y: (f - y).abs().mean(), numbers(4, 6), numbers(4, 6) + 1),
    "huber, far away": (lambda f, y: F.huber_loss(f, y), numbers(4, 6), numbers(4, 6) + 9),
    "dice": (dice, numbers(4, 1, 20, 20), (numbers(4, 1, 20, 20) > 0).double()),
    "ctc": (ctc, numbers(4, 7, 10), torch.ones(4, 3, dtype=torch.int64)),
    "concave": (lambda f, y: -f.square().mean(), numbers(4, 6), None),
}


@pytest.mark.parametrize("name", FISHER)
def test_the_fallback_is_the_outer_product_of_gradients(name: str) -> None:
    loss_fn, output, targets = FISHER[name]
    loss, values = seen(loss_fn, output, targets)
    alone = []
    for n in range(len(output)):
        leaf = output[n : n + 1].clone().requires_grad_()
        own = None if targets is None else targets[n : n + 1]
        alone.append(torch.autograd.grad(loss_fn(leaf, own), leaf)[0].flatten())
    expected = torch.einsum("na,nb->nab", *[torch.stack(alone)] * 2)
    torch.testing.assert_close(square(loss, values), expected, rtol=1e-6, atol=1e-9)
    assert loss.curvature == "empirical Fisher"
    assert loss.factor(values).mass.shape == (4, 1), "never a dense Hessian of all outputs"


@pytest.mark.parametrize("method", ["joint", "hap", "taylor", "sosp-h"])
def test_a_loss_that_is_not_finite_is_named(method: str) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(6, 4)
    with pytest.raises(NumericalError, match=r"`loss_fn` must return a finite number for each batch, got nan\. Look"):
        hp.saliency(net, hp.find_groups(net, x), [x], method, loss_fn=lambda output, _: output.mean() * torch.nan)


def test_targets_may_be_any_tree_and_outputs_too() -> None:
    output = {"cls": numbers(4, 3), "box": numbers(4, 2, 4)}
    targets = [{"boxes": numbers(n, 4), "labels": torch.zeros(n)} for n in range(4)]

    def loss_fn(out: dict[str, Tensor], rows: list[dict[str, Tensor]]) -> Tensor:
        each = [out["box"][n, 0].sum() * len(row["boxes"]) + out["cls"][n].exp().sum() for n, row in enumerate(rows)]
        return torch.stack(each).mean()

    loss, values = seen(loss_fn, output, targets)
    assert values.shape == (4, 11)
    torch.testing.assert_close(square(loss, values), hessians(loss, values), rtol=1e-9, atol=1e-11)
    slope = loss.slope(values)
    assert torch.equal((slope != 0).sum(0) > 0, torch.tensor([True] * 7 + [False] * 4))


def test_some_samples_move_while_the_others_stay() -> None:
    loss, values = seen(lambda f, y: (f - y).square().mean(), numbers(4, 3), numbers(4, 3).flip(0))
    rows, shift = torch.tensor([2, 0]), numbers(2, 3)
    rises = loss.rises(values[rows], rows, torch.stack([0 * shift, shift]))
    torch.testing.assert_close(rises, torch.stack([0 * shift, shift]).square().mean((1, 2)))
    assert (loss.weight(), loss.weight(rows)) == (4.0, 2.0)


def test_a_loss_of_what_mixes_samples_is_refused() -> None:
    a, b = numbers(6, 4), numbers(6, 4)
    output = {"logits": a @ b.T, "left": a, "right": b}
    outputs = Outputs.find({"logits": a[:2] @ b[:2].T, "left": a[:2], "right": b[:2]},
                           {"logits": a[:1] @ b[:1].T, "left": a[:1], "right": b[:1]})  # fmt: skip
    targets = torch.arange(6)
    losses = {
        "mixed": lambda o, t: F.cross_entropy(o["logits"], t),
        "beside": lambda o, t: F.cross_entropy(o["logits"], t) + o["left"].square().mean(),
        "apart": lambda o, t: F.cross_entropy(o["left"] @ o["right"].T, t),
    }
    for name, loss_fn in losses.items():
        loss = AnyLoss(loss_fn, outputs, targets, 6)
        loss.is_first = True
        with pytest.raises(UnsupportedModelError, match="reads 'logits'") if name != "apart" else nullcontext():
            loss.see([(output, 6)], outputs.read(output, 6))
