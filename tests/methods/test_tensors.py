"""Saliencies survive as tensors and JSON values."""

import json

import torch

from hessprune.foundation.symmetric import Factor
from hessprune.methods.tensors import saliency_from, saliency_tensors
from hessprune.methods.values import Saliency


def test_everything_comes_back() -> None:
    values = {"a": torch.rand(3).double(), "b": torch.rand(2).double()}
    facts = {"method": "sosp-i", "seed": 3}
    first = Saliency(values, provenance=facts, per_cost=False, standard_error=values, interactions=torch.eye(5))
    second = Saliency(values, provenance=facts, interactions=Factor(torch.rand(2, 5), absolute=True))
    for saliency in (first, second):
        tensors, kept = saliency_tensors(saliency, "0:")
        assert all(name.startswith("0:") for name in tensors)
        back = saliency_from(tensors, json.loads(json.dumps(kept)), "0:")
        assert (back.provenance, back.per_cost, list(back)) == (facts, saliency.per_cost, ["a", "b"])
        assert all(torch.equal(back[name], values[name]) for name in values)
        assert (back.standard_error is None) == (saliency.standard_error is None)
    assert isinstance(back.interactions, Factor)
    assert back.interactions.absolute
