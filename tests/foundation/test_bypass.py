import threading

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import hessprune as hp
from hessprune.errors import DataError
from hessprune.foundation.bypass import plain_forwards

# What torch says about a block whose parameters alone have gradients.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(16) % 4)]


class Net(nn.Module):
    """A network that recomputes its blocks in the backward pass, or does not."""

    def __init__(self, way: str):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head, self.way = nn.Linear(8, 4), way

    def forward(self, x):
        if self.way == "sequential":
            return self.head(checkpoint_sequential(self.blocks, 2, x, use_reentrant=False).mean((2, 3)))
        if self.way == "nested":
            x = checkpoint(lambda v: checkpoint(self.blocks, v, use_reentrant=False), x, use_reentrant=True)
            return self.head(x.mean((2, 3)))
        if self.way == "plain":
            return self.head(self.blocks(x).mean((2, 3)))
        return self.head(checkpoint(self.blocks, x, use_reentrant=self.way == "reentrant").mean((2, 3)))


def made(way):
    torch.manual_seed(0)
    return Net(way).eval()


@pytest.mark.parametrize("method", ["joint", "taylor", "sosp-h", "hap(estimator=hutchinson,num_probes=2)"])
@pytest.mark.parametrize("way", ["reentrant", "not reentrant", "sequential", "nested"])
def test_checkpointed_models_have_the_saliencies_of_plain_ones(way, method):
    groups = hp.find_groups(made(way), X[:1])
    values, expected = (hp.saliency(made(each), groups, BATCHES, method) for each in (way, "plain"))
    assert torch.allclose(values["blocks.0"], expected["blocks.0"], rtol=1e-5)


@pytest.mark.parametrize("way", ["reentrant", "not reentrant"])
def test_checkpointed_models_prune_and_train(way):
    result = hp.prune(made(way), X[:1], BATCHES, budget=hp.Budget(macs=0.6))
    hp.finetune(result.model, BATCHES, BATCHES, config=hp.FinetuneConfig(epochs=1))
    assert result.plan.kept_fraction("macs") <= 0.6


def test_torch_is_as_before_afterwards():
    before = torch_checkpoint.CheckpointFunction, torch_checkpoint._checkpoint_without_reentrant_generator
    with pytest.raises(DataError), plain_forwards(), plain_forwards():
        raise DataError
    after = torch_checkpoint.CheckpointFunction, torch_checkpoint._checkpoint_without_reentrant_generator
    assert after == before


@pytest.mark.parametrize("reentrant", [True, False])
def test_errors_of_a_block_pass_through(reentrant):
    def fail(x):
        raise DataError("no")

    with plain_forwards(), pytest.raises(DataError, match="no"):
        checkpoint(fail, X, use_reentrant=reentrant)


@pytest.mark.parametrize(("reentrant", "runs"), [(True, 2), (False, 2)])
def test_other_threads_still_recompute(reentrant, runs):
    counts = {}

    def train(name):
        calls = []
        x = X[:1].clone().requires_grad_()
        checkpoint(lambda v: (calls.append(1), v.sin())[1], x, use_reentrant=reentrant).sum().backward()
        counts[name] = len(calls)

    with plain_forwards():
        train("watching")
        thread = threading.Thread(target=train, args=("other",))
        thread.start()
        thread.join()
    train("after")
    assert counts == {"watching": 1, "other": runs, "after": runs}


class Choosing(nn.Module):
    """Control flow that `torch.export` captures, with and without weights in a branch."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.f, self.g = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4), nn.Linear(4, 4)
        self.register_buffer("flag", torch.tensor(True))

    def forward(self, x):
        x = torch.cond(self.flag, lambda v: 2 * v, lambda v: v - 1, (x,))
        x = self.f(self.b(self.a(x).relu()).relu().mean((2, 3)))
        return torch.cond(self.flag, lambda v: self.g(v), lambda v: 1 * v, (x,))


@pytest.mark.parametrize("method", ["magnitude", "joint", "hap", "taylor", "hap(estimator=hutchinson,num_probes=2)"])
def test_control_flow_that_can_be_captured_is_pruned_around(method):
    torch.manual_seed(0)
    result = hp.prune(Choosing().eval(), X[:1], BATCHES, budget=hp.Budget(macs=0.6), method=method)
    assert {group.name for group in result.plan.groups} == {"a", "b"}
    assert result.cost_before == hp.cost(Choosing(), X[:1])
    assert result.cost_before.macs == 16 * 27 * 8 + 4 * 72 * 8 + 8 * 4 + 4 * 4
