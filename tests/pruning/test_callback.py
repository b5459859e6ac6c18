"""Training goes on with the smaller model: same object, same optimizer, a plan beside every checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError
from tests.huggingface import config, package, tokens

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def half(model: nn.Module) -> hp.PruneResult:
    return hp.prune(model, X, [X], budget=hp.Budget(macs=0.5), method="magnitude")


@dataclass
class Trainer:
    """What Hugging Face's Trainer does around a step, and the events that it calls."""

    model: nn.Module
    callbacks: list[Any]
    output_dir: Path = Path()
    steps: int = 6
    losses: list[float] = field(default_factory=list)

    def train(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        state = SimpleNamespace(global_step=0)
        self.call("on_train_begin", state)
        for _ in range(self.steps):
            self.call("on_step_begin", state)
            loss = F.cross_entropy(self.model(X), Y)
            loss.backward()
            self.call("on_pre_optimizer_step", state)
            self.optimizer.step()
            schedule.step()
            self.model.zero_grad()
            state.global_step += 1
            self.losses.append(float(loss.detach()))
            self.call("on_step_end", state)
        self.call("on_save", state)
        self.call("on_train_end", state)

    def call(self, event: str, state: Any) -> None:
        args, objects = SimpleNamespace(output_dir=str(self.output_dir)), {"model": self.model, "train_dataloader": []}
        for callback in self.callbacks:
            assert getattr(callback, event)(args, state, None, optimizer=self.optimizer, **objects) is None


@pytest.mark.parametrize("at_step", [0, 3, 6])
def test_training_goes_on_with_the_smaller_model(at_step, tmp_path):
    callback = hp.PruneCallback(half, at_step=at_step)
    trainer = Trainer(net(), [callback], tmp_path)
    model = trainer.model
    trainer.train()
    assert trainer.model is model
    assert model[0].out_features == 8
    assert model.training
    assert {id(p) for p in trainer.optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert set(trainer.optimizer.state) <= set(model.parameters())
    again = hp.load(tmp_path / "checkpoint-6", net)
    assert torch.equal(again(X), model.eval()(X))
    if at_step == 0:
        assert trainer.losses[-1] < 0.9 * trainer.losses[0]


def test_the_moments_of_parameters_that_kept_their_shape_stay():
    callback, model = hp.PruneCallback(half), net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    before = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    callback.on_step_end(None, SimpleNamespace(global_step=1), None, model=model, optimizer=optimizer)
    parameters = dict(model.named_parameters())
    assert [name for name, p in parameters.items() if p in optimizer.state] == ["2.bias"]
    assert torch.equal(optimizer.state[parameters["2.bias"]]["exp_avg"], before["2.bias"])
    assert optimizer.param_groups[0]["params"] == list(parameters.values())


def test_a_model_is_pruned_once():
    calls = []
    callback, model = hp.PruneCallback(lambda m: (calls.append(1), half(m))[1], at_step=2), net()
    for step in range(5):
        callback.on_step_end(None, SimpleNamespace(global_step=step), None, model=model)
    assert len(calls) == 1
    assert callback.plan.num_removed == 8


def test_the_trainer_of_transformers_calls_these_events(tmp_path):
    """Its handler of callbacks, without the Trainer itself, which needs another package."""
    transformers = package("transformers")
    batch = tokens()
    model = transformers.BertForSequenceClassification(config())
    callback = hp.PruneCallback(lambda m: hp.prune(m, batch, [batch], budget=hp.Budget(macs=0.6), method="magnitude"))
    handler = transformers.trainer_callback.CallbackHandler([callback], model, None, None, None)
    state = transformers.TrainerState(global_step=3)
    control, args = transformers.TrainerControl(), SimpleNamespace(output_dir=str(tmp_path), world_size=1)
    for event in ("on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin", "on_step_end", "on_save"):
        handler.call_event(event, args, state, control)
    again = hp.load(tmp_path / "checkpoint-3")
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


def test_what_cannot_work_is_one_clear_error():
    state = SimpleNamespace(global_step=0)
    with pytest.raises(ArgumentError, match="`at_step` must be an integer of at least 0, got -1"):
        hp.PruneCallback(half, at_step=-1)
    with pytest.raises(ArgumentError, match=r"`PruneCallback` must run in one process, got 2. Prune the model before"):
        hp.PruneCallback(half).on_train_begin(SimpleNamespace(world_size=2), state, None, model=net())
    with pytest.raises(ArgumentError, match=r"`prune` must return what hp.prune returns, got Sequential"):
        hp.PruneCallback(lambda m: m).on_train_begin(None, state, None, model=net())
    with pytest.raises(AttributeError):
        _ = hp.PruneCallback(half).other
