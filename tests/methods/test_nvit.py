"""NViT's score against the gradient of every weight."""

import torch
import torch.nn.functional as F

import hessprune as hp
from tests.cases import Residual, image, make
from tests.methods.gating import Y, flat


def test_nvit_is_the_squared_sum_of_weight_times_gradient() -> None:
    model, x = make(Residual).double().eval(), image(batch=3).double()
    groups = hp.find_groups(model, x)
    found = flat(hp.saliency(model, groups, [(x, Y)], hp.NViT(precision="fp64")))
    loss = F.cross_entropy(model(x), Y)
    weights = dict(model.named_parameters())
    slopes = dict(zip(weights, torch.autograd.grad(loss, [*weights.values()]), strict=True))
    expected = []
    for group in groups:
        for unit in range(group.num_units):
            pieces = [piece for piece in group.slices if piece.role != "follower"]
            rows = [(p, list(p.index[unit])) for p in pieces]
            products = [
                (weights[p.param].detach() * slopes[p.param]).index_select(p.dim, torch.tensor(i)) for p, i in rows
            ]
            total = sum(product.sum() for product in products)
            expected.append(float(total) ** 2)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-18)
