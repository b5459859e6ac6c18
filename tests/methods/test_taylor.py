"""Taylor against the gradient of every sample."""

import torch
import torch.nn.functional as F

import hessprune as hp
from tests.cases import Residual, image, make
from tests.methods.gating import Y, flat, gated

SOSPI = hp.SOSPI(precision="fp64")


def test_taylor_is_the_mean_absolute_gate_gradient() -> None:
    model, x = make(Residual), image(batch=3)
    groups = hp.find_groups(model, x)
    found = flat(hp.saliency(model, groups, [(x, Y)], hp.Taylor(precision="fp64")))
    per_sample = []
    for n in range(3):
        logits, gates = gated(model, groups, x[n : n + 1], "consumer")
        per_sample.append(torch.func.grad(lambda g, f=logits, n=n: F.cross_entropy(f(g), Y[n : n + 1]))(gates).abs())
    torch.testing.assert_close(found, torch.stack(per_sample).mean(0), rtol=1e-9, atol=1e-14)
