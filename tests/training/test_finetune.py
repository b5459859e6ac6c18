import copy
import itertools
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from hessprune.deploy.evaluation import evaluate
from hessprune.errors import ArgumentError, CheckpointError, DataError, NumericalError, OutputError
from hessprune.foundation import files as _files
from hessprune.foundation.progress import listening
from hessprune.training.finetune import FinetuneConfig, finetune

CONFIG = FinetuneConfig(epochs=3, lr=0.05, checkpoint_every_steps=2)
SET_UP = 1 + 1 + 1 + 5  # batches read before training: three looks at the first one, and BatchNorm


class Batches:
    """Random digits of three classes; the images of an epoch are augmented by noise from torch's global generator."""

    def __init__(self, num_batches: int = 5, stop_at: int | None = None, noise: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.randint(0, 3, (num_batches, 8), generator=generator)
        self.images = torch.randn(num_batches, 8, 1, 6, 6, generator=generator) + self.targets[..., None, None, None]
        self.stop_at, self.noise, self.read = stop_at, noise, 0

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self):
        for images, targets in zip(self.images, self.targets, strict=True):
            self.read += 1
            if self.read == self.stop_at:
                raise KeyboardInterrupt
            yield images + self.noise * torch.randn_like(images), targets


class Resumable(Batches):
    """The same, but able to begin anywhere, as the library's own image batches are."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def iterate(self, epoch: int, start_step: int):
        for step in range(start_step, len(self)):
            self.read += 1
            if self.read == self.stop_at:
                raise KeyboardInterrupt
            yield self.images[step] + epoch * 0.01, self.targets[step]


class Relabelled(Batches):
    """The same images of other digits."""

    def __init__(self) -> None:
        super().__init__()
        self.targets = 2 - self.targets


class Rotating(Batches):
    """Batches in another order at each look, as where a generator draws it that is not torch's."""

    def __iter__(self):
        first = next(_LOOKS)
        for step in range(len(self)):
            place = (step + first) % len(self)
            yield self.images[place], self.targets[place]


_LOOKS = itertools.count()
VALIDATION = [(images, targets) for images, targets in zip(Batches(3).images, Batches(3).targets, strict=True)]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
    )


def _with_another_activation() -> nn.Sequential:
    net = _net()
    net[2] = nn.Tanh()
    return net


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _history(result) -> list[dict]:
    return [asdict(replace(record, seconds=0.0)) for record in result.history]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_and_leaves_everything_else_alone(optimizer):
    model, before = _net().train(), _net()
    state = torch.get_rng_state()
    lr = 0.05 if optimizer == "sgd" else 0.02
    result = finetune(model, Batches(), VALIDATION, config=FinetuneConfig(epochs=6, lr=lr, optimizer=optimizer))
    assert _equal(model, before)
    assert model.training
    assert all(parameter.grad is None for parameter in (*model.parameters(), *result.model.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    assert not result.model.training
    assert result.history[-1].train_loss < 0.5 * result.history[1].train_loss
    assert result.history[result.best_epoch].validation_accuracy > result.history[0].validation_accuracy


def test_every_step_is_the_textbook_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    data = [
        (images[:size].double(), targets[:size]) for (images, targets), size in zip(VALIDATION, (8, 8, 3), strict=True)
    ]
    config = FinetuneConfig(epochs=2, lr=0.1, warmup_fraction=0.5, label_smoothing=0.1, weight_decay=0.1, clip_norm=1.0)
    finetuned = finetune(model, data, data, config=config)
    weight, bias = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    velocities, states, losses = [torch.zeros_like(weight), torch.zeros_like(bias)], [], []
    for step, (images, targets) in enumerate(data * 2):
        lr = 0.1 * (step + 1) / 4 if step < 3 else 0.05 * (1 + math.cos(math.pi * (step - 3) / 3))
        inputs = images.flatten(1)
        wanted = 0.9 * torch.eye(3, dtype=torch.float64)[targets] + 0.1 / 3
        predicted = torch.softmax(inputs @ weight.T + bias, 1)
        losses.append(-(wanted * predicted.log()).sum())
        error = (predicted - wanted) / len(targets)
        gradients = [error.T @ inputs, error.sum(0)]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for parameter, gradient, velocity, decay in zip((weight, bias), gradients, velocities, (0.1, 0.0), strict=True):
            gradient = gradient * min(1.0, 1 / (norm + 1e-6)) + decay * parameter
            velocity.mul_(0.9).add_(gradient)
            parameter -= lr * (gradient + 0.9 * velocity)
        states.append(weight.clone())
    expected = {1: states[2], 2: states[5]}[finetuned.best_epoch]
    assert torch.allclose(finetuned.model[1].weight, expected, rtol=1e-10, atol=0)
    assert finetuned.history[1].train_loss == pytest.approx(float(sum(losses[:3])) / 19, rel=1e-10)
    assert finetuned.history[2].train_loss == pytest.approx(float(sum(losses[3:])) / 19, rel=1e-10)


def test_history_is_json_and_agrees_with_evaluate():
    result = finetune(_net(), Batches(), VALIDATION, config=CONFIG)
    assert [record.epoch for record in result.history] == [0, 1, 2, 3]
    assert result.history[0].train_loss is None
    assert json.loads(json.dumps([asdict(record) for record in result.history], allow_nan=False))
    best = result.history[result.best_epoch]
    measured = evaluate(result.model, VALIDATION)
    assert (best.validation_accuracy, best.validation_loss) == (measured.accuracy, measured.loss)


def test_of_equally_accurate_epochs_the_one_of_lowest_loss_wins():
    result = finetune(_net(), Batches(noise=0.0), VALIDATION, config=replace(CONFIG, epochs=8))
    accuracies = [record.validation_accuracy for record in result.history]
    assert accuracies.count(max(accuracies)) > 1
    best = [record for record in result.history if record.validation_accuracy == max(accuracies)]
    assert result.best_epoch == min(best, key=lambda record: record.validation_loss).epoch
    assert result.best_epoch > accuracies.index(max(accuracies))


def test_a_run_that_only_harms_returns_the_model_before_training():
    good = finetune(_net(), Batches(), VALIDATION, config=replace(CONFIG, epochs=6)).model
    flipped = [(images, 2 - targets) for images, targets in VALIDATION]
    harmful = replace(CONFIG, reestimate_batchnorm=False)
    result = finetune(good, flipped, VALIDATION, config=harmful)
    assert result.best_epoch == 0
    assert _equal(result.model, good)


def test_options_in_a_dict_are_refused():
    with pytest.raises(ArgumentError, match=r"`config` must be of type FinetuneConfig, got .*hp\.FinetuneConfig\("):
        finetune(nn.Linear(2, 2), [], [], config={"epochs": 1})


def test_no_epochs_only_repair_batchnorm():
    good = finetune(_net(), Batches(), VALIDATION, config=replace(CONFIG, epochs=6))
    spoilt = copy.deepcopy(good.model)
    nn.init.constant_(spoilt[1].running_mean, 50.0)
    repaired = finetune(spoilt, Batches(), VALIDATION, config=FinetuneConfig(epochs=0))
    assert len(repaired.history) == 1
    assert repaired.history[0].validation_accuracy == pytest.approx(
        max(r.validation_accuracy for r in good.history), abs=0.1
    )
    assert all(torch.equal(a, b) for a, b in zip(repaired.model.parameters(), good.model.parameters(), strict=True))
    left = finetune(spoilt, Batches(), VALIDATION, config=FinetuneConfig(epochs=0, reestimate_batchnorm=False))
    assert _equal(left.model, spoilt)


def test_statistics_are_those_of_the_first_samples(monkeypatch):
    whole, first = Batches(), Batches()
    finetune(_net(), whole, VALIDATION, config=replace(CONFIG, epochs=0))
    monkeypatch.setattr(sys.modules[finetune.__module__], "BATCHNORM_SAMPLES", 16)
    finetune(_net(), first, VALIDATION, config=replace(CONFIG, epochs=0))
    assert whole.read - first.read == 3


def test_statistics_that_validate_worse_are_not_taken():
    good = finetune(_net(), Batches(), VALIDATION, config=replace(CONFIG, epochs=6)).model
    shifted = [(images + 100, targets) for images, targets in VALIDATION]
    assert _equal(finetune(good, shifted, VALIDATION, config=FinetuneConfig(epochs=0)).model, good)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", [Batches, Resumable])
@pytest.mark.parametrize("stop_at", [SET_UP + 2, SET_UP + 4, SET_UP + 6, SET_UP + 15])
def test_a_killed_run_continues_bit_for_bit(tmp_path, optimizer, kind, stop_at):
    config = replace(CONFIG, optimizer=optimizer)
    whole = finetune(_net(), kind(), VALIDATION, config=config)
    with pytest.raises(KeyboardInterrupt):
        finetune(_net(), kind(stop_at=stop_at), VALIDATION, config=config, checkpoint_dir=tmp_path)
    resumed = finetune(_net(), kind(), VALIDATION, config=config, checkpoint_dir=tmp_path)
    assert _equal(whole.model, resumed.model)
    assert _history(whole) == _history(resumed)


def test_the_last_weights_agree_too_not_only_the_best(tmp_path):
    config = replace(CONFIG, label_smoothing=0.1, distill_weight=0.5, clip_norm=1.0)
    for folder, stop_at in (("whole", None), ("killed", SET_UP + 8)):
        try:
            finetune(
                _net(),
                Batches(stop_at=stop_at),
                VALIDATION,
                config=config,
                teacher=_net(),
                checkpoint_dir=tmp_path / folder,
            )
        except KeyboardInterrupt:
            finetune(_net(), Batches(), VALIDATION, config=config, teacher=_net(), checkpoint_dir=tmp_path / folder)
    whole, killed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert any(name.startswith("optimizer.momentum_buffer.") for name in whole)
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


def test_a_resumed_run_reads_nothing_twice(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        finetune(_net(), Resumable(stop_at=SET_UP + 4), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    rest = Resumable()
    finetune(_net(), rest, VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    assert rest.read == 2 + 3 + 5 + 5  # two looks, and what follows the checkpoint after two steps
    done = Resumable()
    finished = finetune(_net(), done, VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    assert done.read == 2
    assert len(finished.history) == 4


def test_the_folder_holds_the_best_model_as_a_plain_state_dict(tmp_path):
    (tmp_path / ".last.1.tmp.safetensors").write_bytes(b"half")
    result = finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"best-{result.best_epoch}.safetensors", "last.safetensors"]
    loaded = _net()
    loaded.load_state_dict(load_file(tmp_path / names[0]))
    assert _equal(loaded, result.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(CONFIG, lr=0.1)}, r"differs in: lr 0.05 there, 0.1 now\. Delete that folder"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(36, 3))}, "differs in: initial weights"),
        ({"train": Batches(4)}, "batches in train 5 there, 4 now"),
        ({"validation": [(images[:2], targets[:2]) for images, targets in VALIDATION]}, "first batch of validation"),
        ({"teacher": _net()}, r"differs in: teacher's weights; teacher's modules"),
        ({"model": _with_another_activation()}, r"differs in: modules\. Delete"),
        ({"train": Relabelled()}, r"differs in: first batch of train \[\[8, 1, 6, 6\], \[8\]\] \w{12} there, "),
        ({"validation": [(images + 1, y) for images, y in VALIDATION]}, "differs in: first batch of validation"),
        ({"validation": [(images, 2 - y) for images, y in VALIDATION]}, "differs in: first batch of validation"),
        ({"loss_fn": lambda output, y: 2 * F.cross_entropy(output, y)}, "differs in: loss '<lambda> .{12}' there, '"),
        ({"loss_fn": partial(F.cross_entropy, label_smoothing=0.1)}, "differs in: loss '.*' there, 'partial "),
        ({"loss_fn": nn.MultiMarginLoss(margin=2.0)}, "differs in: loss '.*' there, 'MultiMarginLoss "),
        ({"loss_fn": None}, "differs in: loss '.*' there, 'cross_entropy' now"),
        ({"metric": lambda output, y: -1.0}, r"differs in: metric None there, '<lambda> \w{12}' now"),
    ],
)
def test_another_runs_folder_is_refused(tmp_path, change, message):
    arguments = {"model": _net(), "train": Batches(), "validation": VALIDATION, "config": CONFIG, "teacher": None}
    arguments["loss_fn"] = lambda output, y: F.cross_entropy(output, y)
    finetune(**arguments, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match=message):
        finetune(**(arguments | change), checkpoint_dir=tmp_path)


def test_data_that_change_at_each_look_are_not_compared(tmp_path):
    first = finetune(_net(), Rotating(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    for _ in range(3):
        again = finetune(_net(), Rotating(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
        assert again.history == first.history


def test_inputs_count_where_there_are_no_targets(tmp_path):
    def energy(output, targets):
        return output.square().mean()

    train, other = ([images + shift for images, _ in VALIDATION] for shift in (0, 1))
    finetune(_net(), train, VALIDATION, config=CONFIG, loss_fn=energy, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="differs in: first batch of train"):
        finetune(_net(), other, VALIDATION, config=CONFIG, loss_fn=energy, checkpoint_dir=tmp_path)


PROGRAM = """
import functools, sys, torch, hessprune as hp
import torch.nn.functional as F
from torch import nn

class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale
    def forward(self, output, y):
        return self.scale * F.mse_loss(output, y)

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
x, y, scale = torch.randn(8, 3), torch.randn(8, 2), 2.0

class Data(list):
    read, stop_at = 0, 0
    def __iter__(self):
        for batch in super().__iter__():
            self.read += 1
            if self.read == self.stop_at:
                raise KeyboardInterrupt
            yield batch

losses = {
    "lambda": lambda output, y: scale * F.mse_loss(output, y),
    "partial": functools.partial(F.smooth_l1_loss, beta=0.5),
    "module": Scaled(3.0),
}
config = hp.FinetuneConfig(epochs=2, lr=0.1, checkpoint_every_steps=1)
for name, loss in losses.items():
    def run(**options):
        data = Data([(x, y)] * 3)
        data.stop_at = int(sys.argv[2])
        try:
            result = hp.finetune(net, data, [(x, y)], config=config, loss_fn=loss,
                metric=lambda output, y: -float(loss(output, y)), **options)
        except KeyboardInterrupt:
            return "killed", []
        return data.read, [record.train_loss for record in result.history]
    (read, history), (read_whole, whole) = run(checkpoint_dir=sys.argv[1] + name), run()
    print(name, read, history == whole)
"""


def test_a_killed_run_continues_in_another_process(tmp_path):
    def run(stop_at: int) -> list[str]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run-"), str(stop_at)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()

    assert run(6) == [f"{name} killed True" for name in ("lambda", "partial", "module")]
    assert run(0) == [f"{name} {2 + 3} True" for name in ("lambda", "partial", "module")]  # two looks, an epoch


@pytest.mark.parametrize("name", ["last", "best-*"])
def test_a_truncated_checkpoint_is_named(tmp_path, name):
    finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    (path,) = tmp_path.glob(f"{name}.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=rf"{path.name}' must be a whole checkpoint.*Delete the folder"):
        finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("name", ["last", "best-*"])
def test_a_flipped_byte_is_noticed(tmp_path, name):
    finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    (path,) = tmp_path.glob(f"{name}.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"must be a whole checkpoint, .*its hash is another one.*Delete the"):
        finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path):
    config = replace(CONFIG, checkpoint_every_steps=1)
    often = finetune(_net(), Batches(), VALIDATION, config=config, checkpoint_dir=tmp_path)
    rarely = finetune(_net(), Batches(), VALIDATION, config=replace(CONFIG, checkpoint_every_steps=10**6))
    assert _equal(often.model, rarely.model)
    assert finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path).history == often.history


def test_an_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    train = Batches()
    with pytest.raises(OutputError, match="output must be writable"):
        finetune(_net(), train, VALIDATION, config=CONFIG, checkpoint_dir=tmp_path / "file")
    assert train.read <= 2


def test_a_full_disk_keeps_the_last_whole_checkpoint(tmp_path, monkeypatch):
    whole = finetune(_net(), Batches(), VALIDATION, config=CONFIG)
    writes = []

    def fails_late(descriptor):
        writes.append(descriptor)
        if len(writes) > 6:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", fails_late)
        with pytest.raises(OutputError, match="No space left"):
            finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    resumed = finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
    assert _equal(whole.model, resumed.model)


def test_a_diverging_run_names_causes_and_keeps_the_best_model(tmp_path):
    config = replace(CONFIG, lr=1e30, warmup_fraction=0.0)
    with pytest.raises(NumericalError, match=r"loss must be finite, got .*\(a\).*\(b\).*\(c\).*kept in '.*best-0"):
        finetune(_net(), Batches(), VALIDATION, config=config, checkpoint_dir=tmp_path)
    best = load_file(tmp_path / "best-0.safetensors")
    assert all(math.isfinite(value.sum()) for value in best.values())


def test_a_metric_that_is_nan_is_no_fault_of_the_training():
    with pytest.raises(NumericalError, match=r"^`metric` must be a number for each batch, got NaN"):
        finetune(_net(), Batches(), VALIDATION, config=CONFIG, metric=lambda output, y: math.nan)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "`loss_fn` must average over samples"),
        (lambda output, y: None, "`loss_fn` must give one number for a batch, got NoneType"),
        (lambda output, y: 1.0, "`loss_fn` must return one number for a batch, a tensor with a gradient, got float"),
        (lambda output, y: output.detach().mean(), "`loss_fn` must depend on the model's outputs"),
        (lambda output: output.mean(), "`loss_fn` must take the output and the targets"),
    ],
)
def test_what_is_no_loss_is_named(loss_fn, message):
    with pytest.raises(ArgumentError, match=message):
        finetune(_net(), Batches(), VALIDATION, config=CONFIG, loss_fn=loss_fn)


def test_a_last_step_that_diverges_is_found_by_validation():
    config = FinetuneConfig(epochs=1, lr=1e38, warmup_fraction=0.0)
    with pytest.raises(NumericalError, match=r"validation loss must be finite.*of epoch 1\. Likely \(a\)"):
        finetune(_net(), Batches(1), VALIDATION, config=config)


def test_inputs_that_hold_nan_change_no_weight(tmp_path):
    train = [(images, targets) for images, targets in VALIDATION]
    train[1] = (train[1][0] * float("nan"), train[1][1])
    config = replace(CONFIG, reestimate_batchnorm=False)
    with pytest.raises(NumericalError, match="got nan at step 1 of epoch 1"):
        finetune(_net(), train, VALIDATION, config=config, checkpoint_dir=tmp_path)


def test_a_data_loader_shuffles_anew_each_epoch_and_alike_each_run():
    samples = [(images, target) for batch, targets in VALIDATION for images, target in zip(batch, targets, strict=True)]
    seen = []

    class Recorded(nn.Flatten):
        def forward(self, x):
            if self.training:
                seen.append(x.sum().item())
            return super().forward(x)

    model = nn.Sequential(Recorded(), nn.Linear(36, 3))
    for _ in range(2):
        loader = torch.utils.data.DataLoader(samples, batch_size=8, shuffle=True)
        finetune(model, loader, VALIDATION, config=replace(CONFIG, epochs=2))
    assert seen[:6] == seen[6:]
    assert seen[:3] != seen[3:6]


def test_each_step_drops_other_units():
    masks = []

    class Recorded(nn.Dropout):
        def forward(self, x):
            output = super().forward(x)
            if self.training:
                masks.append((output == 0).tolist())
            return output

    model = nn.Sequential(nn.Flatten(), Recorded(0.5), nn.Linear(36, 3))
    finetune(model, Batches(), VALIDATION, config=CONFIG)
    assert len(masks) == 15
    assert all(masks.count(mask) == 1 for mask in masks)


def test_bf16_trains_in_bf16_and_validates_in_fp32():
    types = []

    class Recorded(nn.Linear):
        def forward(self, x):
            output = super().forward(x)
            types.append((self.training, output.dtype))
            return output

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Recorded(36, 3))
    result = finetune(model, Batches(), VALIDATION, config=replace(CONFIG, precision="bf16", epochs=5))
    assert set(types) == {(True, torch.bfloat16), (False, torch.float32)}
    assert result.model[1].weight.dtype == torch.float32
    assert result.history[-1].train_loss < result.history[1].train_loss


def test_progress_is_one_bar_over_all_steps_with_a_note(tmp_path):
    class Recorder:
        def __init__(self):
            self.bars, self.notes = [], []

        def start(self, label, total):
            self.bars.append([label, total, 0])
            return len(self.bars) - 1

        def advance(self, handle, steps, note):
            self.bars[handle][2] += steps
            self.notes += [note] if note else []

        def finish(self, handle):
            pass

    first, second = Recorder(), Recorder()
    for recorder in (first, second):  # the second time nothing is left to do, and the bar says so
        with listening(recorder):
            finetune(_net(), Batches(), VALIDATION, config=CONFIG, checkpoint_dir=tmp_path)
        assert ["training", 15, 15] in recorder.bars
    assert first.notes[-1].startswith("epoch 3/3, loss 0.")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": []}, DataError, r"`train` must hold at least one \(inputs, targets\) pair"),
        ({"validation": iter(VALIDATION)}, DataError, "`validation` must be re-iterable"),
        (
            {"train": [(torch.zeros(4, 3, 6, 6), torch.zeros(4).long())]},
            DataError,
            r"float32 \(4, 3, 6, 6\), in module",
        ),
        ({"train": [(torch.randn(4, 1, 6, 6), torch.full((4,), 3))]}, DataError, r"`train` must be in \[0, 3\)"),
        ({"config": replace(CONFIG, precision="fp16")}, ArgumentError, "on a CPU, got 'fp16'.*precision='bf16'"),
        ({"config": replace(CONFIG, distill_weight=0.5)}, ArgumentError, "`teacher` must be a model when"),
        ({"model": _net().requires_grad_(False)}, ArgumentError, "requires_grad=True, got none"),
    ],
)
def test_wrong_input_is_named(change, error, message):
    arguments = {"model": _net(), "train": Batches(), "validation": VALIDATION, "config": CONFIG}
    with pytest.raises(error, match=message):
        finetune(**(arguments | change))


def test_a_teacher_of_another_shape_is_named():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with pytest.raises(ArgumentError, match=r"float32 \(8, 3\), got float32 \(8, 4\)\. Pass the dense model"):
        finetune(_net(), Batches(), VALIDATION, config=replace(CONFIG, distill_weight=0.5), teacher=teacher)


def test_non_finite_weights_are_refused():
    model = _net()
    nn.init.constant_(model[5].bias, float("inf"))
    with pytest.raises(NumericalError, match=r"infinity in '5.bias'"):
        finetune(model, Batches(), VALIDATION, config=CONFIG)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_killed_run_continues_on_an_accelerator(tmp_path, precision):
    config = replace(CONFIG, precision=precision)
    whole = finetune(_net().cuda(), Batches(), VALIDATION, config=config)
    with pytest.raises(KeyboardInterrupt):
        finetune(_net().cuda(), Batches(stop_at=SET_UP + 8), VALIDATION, config=config, checkpoint_dir=tmp_path)
    resumed = finetune(_net().cuda(), Batches(), VALIDATION, config=config, checkpoint_dir=tmp_path)
    assert _equal(whole.model, resumed.model)


class Bigrams(nn.Module):
    """A language model of words and masks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 7)

    def forward(self, input_ids, attention_mask=None):
        del attention_mask
        return {"logits": self.table(input_ids)}


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("asked", [{"metric": "perplexity"}, {"loss_fn": "next_word"}])
def test_language_models_learn_their_words_with_labels_or_without(with_labels, asked):
    ids = torch.randint(1, 7, (8, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    batches = [{**batch, "labels": ids.clone()} if with_labels else batch]
    result = finetune(Bigrams(), batches, batches, config=FinetuneConfig(epochs=3, lr=0.5), **asked)
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert (result.history[0].validation_metric is None) == ("loss_fn" in asked)
    pad = Bigrams().table.weight[0]
    torch.testing.assert_close(result.model.table.weight[0], pad, rtol=0.05, atol=1e-3)  # weight decay alone
    if with_labels:
        nothing = [{**batch, "labels": torch.full_like(ids, -100)}]
        assert finetune(Bigrams(), nothing, batches, config=FinetuneConfig(epochs=1), **asked).best_epoch == 0


def test_logits_of_words_are_no_classes_along_axis_1():
    ids = torch.randint(1, 7, (8, 6))
    with pytest.raises(DataError, match="write loss_fn='next_word'"):
        finetune(Bigrams(), [{"input_ids": ids, "labels": ids}], [ids], config=FinetuneConfig(epochs=1))
