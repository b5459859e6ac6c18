"""Claim: drawing stops by itself once the removal for a budget has settled, on what the exact saliencies remove.

n = 336 lossless CIFAR-10 images, pretrained ResNet-56 (ResNet-20 in a quick run), all prunable units, half of the MACs.
Units that go the other way than by the exact saliencies must lie within three stated errors of their group's threshold.
"""

import torch
from torch import Tensor

import hessprune as hp
from support.claims import Claims, arguments
from support.networks import images, joined, pretrained

Removal = dict[str, Tensor]


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    depth, confidence, seeds = (20, 0.9, 1) if options.quick else (56, 0.95, 3)
    model, batches = pretrained(depth, options.data_root), [images(options.data_root)]
    example = batches[0][0][:1]
    groups = hp.find_groups(model, example)
    removed = hp.removal_for(model, groups, hp.Budget(macs=0.5), example_inputs=example)
    theirs = removed(hp.saliency(model, groups, batches))
    for seed in range(seeds):
        until = hp.Until(removed=removed, confidence=confidence)
        drawn = hp.saliency(model, groups, batches, hp.HAP(estimator="rademacher", until=until), seed=seed)
        name = f"resnet{depth}, seed {seed}"
        compare(claims, name, drawn, removed(drawn), theirs, confidence)
    claims.write(options.out)


def compare(claims: Claims, name: str, drawn: hp.Saliency, ours: Removal, theirs: Removal, confidence: float) -> None:
    """Compare what the drawn and the exact saliencies remove."""
    draws, settled = drawn.provenance["num_probes"], drawn.provenance["settled"]
    claims.add(f"{name}: draws until settled at {confidence:.0%}", draws, "settled", holds=settled)
    one, other = joined(ours), joined(theirs)
    common = 2 * float((one & other).sum()) / float(one.sum() + other.sum())
    claims.at_least(f"{name}: share of the removed set that exact removes too", common, confidence, int(other.sum()))
    errors = drawn.standard_error or {}
    far = torch.cat([distance(drawn[key], ours[key]) > 3 * errors[key] for key in ours])
    beyond = int((far & (one != other)).sum())
    claims.at_most(f"{name}: differing units beyond 3 stated errors of the threshold", beyond, 0)


def distance(values: Tensor, removed: Tensor) -> Tensor:
    """Return how far each unit lies from its group's threshold, between the last removed and the first kept."""
    edges = [values[removed].max()] if bool(removed.any()) else []
    edges += [values[~removed].min()] if not bool(removed.all()) else []
    return torch.stack([(values - edge).abs() for edge in edges]).amin(0)


if __name__ == "__main__":
    main()
