"""Claim: SOSP-I and the joint criterion cost a few training steps, and choosing by them takes seconds.

n = 336 lossless CIFAR-10 images, pretrained ResNet-20 and ResNet-56, all channels, half of the MACs. A training step is
one forward and backward pass over the same images; times are the shortest of interleaved rounds. Peak memory is by how
much the resident set grows, in a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from support.claims import Claims, arguments, interleaved
from support.memory import Peak, in_a_process
from support.networks import images, pretrained

EXAMPLE = torch.zeros(1, 3, 32, 32)
METHODS: dict[str, hp.Method] = {
    "sosp-h": hp.SOSPH(),
    "sosp-i": hp.SOSPI(),
    "joint": hp.Joint(refit=False),
    "joint with compensation": hp.Joint(refit=True),
}


@dataclass(frozen=True)
class Case:
    """One network with its images."""

    model: nn.Module
    groups: hp.Groups
    batch: tuple[Tensor, Tensor]

    def score(self, label: str) -> hp.Saliency:
        """Return the saliencies of all units."""
        return hp.saliency(self.model, self.groups, [self.batch], METHODS[label])

    def step(self) -> None:
        """Take the gradient once, as training would."""
        inputs, targets = self.batch
        self.model.zero_grad()
        F.cross_entropy(self.model(inputs), targets).backward()


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    for depth in (20,) if options.quick else (20, 56):
        name, case = f"resnet{depth}", load(depth, options.data_root)
        scoring(claims, name, case, repeats=1 if options.quick else 3)
        choosing(claims, name, case)
        sizes = {run: in_a_process(peak, run, depth, options.data_root, options.threads) for run in ("step", *METHODS)}
        for label in METHODS:
            ratio = sizes[label] / sizes["step"]
            claims.at_most(f"{name}: peak memory of {label} / training step", ratio, 1, peer=sizes["step"])
        claims.write(options.out)


def scoring(claims: Claims, name: str, case: Case, repeats: int) -> None:
    """Time the saliencies beside a training step."""

    def run(label: str) -> Callable[[], object]:
        return lambda: case.score(label)

    times = interleaved({"step": case.step} | {label: run(label) for label in METHODS}, repeats)
    for label in METHODS:
        claims.at_most(f"{name}: {label} / training step", times[label] / times["step"], 12, peer=times["step"])


def load(depth: int, root: Path) -> Case:
    """Return a pretrained network with all its groups."""
    model = pretrained(depth, root)
    return Case(model, hp.find_groups(model, EXAMPLE), images(root))


def choosing(claims: Claims, name: str, case: Case) -> None:
    """Time the choice itself, from saliencies to a plan: greedy with swaps where removals interact."""
    for label in ("sosp-i", "joint", "joint with compensation"):
        scores = case.score(label)
        seconds = interleaved({label: lambda scores=scores: plan(case, scores)}, 1)[label]
        claims.at_most(f"{name}: seconds from {label} to a plan", seconds, 5)


def plan(case: Case, scores: hp.Saliency) -> hp.Plan:
    """Return the plan for half of the MACs."""
    return hp.make_plan(case.model, case.groups, scores, hp.Budget(macs=0.5), example_inputs=EXAMPLE)


def peak(label: str, depth: int, root: Path, threads: int) -> int:
    """Return by how many bytes the resident set grows."""
    torch.set_num_threads(threads)
    case = load(depth, root)
    case.model(EXAMPLE)  # what any use of the model takes is not counted
    watch = Peak()
    case.step() if label == "step" else case.score(label)
    return watch.stop()


if __name__ == "__main__":
    main()
