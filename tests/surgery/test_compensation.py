"""Compensation: exact where the survivors can do it, never worse where they cannot."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hessprune as hp
from hessprune.layers.least_squares import STRENGTHS, ridge, solve
from hessprune.layers.recording import record
from hessprune.layers.sums import Sums
from hessprune.planning.plan import Plan
from hessprune.planning.planner import plan_removing
from hessprune.surgery import calibration, compensation
from hessprune.surgery.compensation import compensate
from tests.cases import AWKWARD, Flatten, Grouped, Inverted, Plain, Residual, Shared, Tokens, image, make

Y = torch.arange(40) % 4


def batches(size: int = 8) -> list[tuple[Tensor, Tensor]]:
    x = image(batch=40, size=size)
    return [(x[:24], Y[:24]), (x[24:], Y[24:])]


def loss(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    return hp.evaluate(model, data).loss


def plan_for(model: nn.Module, x: Tensor, fraction: float = 0.7) -> Plan:
    groups = hp.find_groups(model, x)
    generator = torch.Generator().manual_seed(0)
    saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
    return hp.make_plan(model, groups, saliency, hp.Budget(params=fraction), example_inputs=x)


def test_ridge_against_the_normal_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, old = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((60, 2, 5), (60, 2, 3), (2, 5, 3))
    )
    fit = solve(Sums.of(x, y), 0.1, old)
    for group in range(2):
        design, wanted, start = x[:, group], y[:, group], old[group]
        gram = design.T @ design
        strength = 0.1 * gram.diagonal().mean()
        expected = torch.linalg.solve(
            gram + strength * torch.eye(5, dtype=torch.float64), design.T @ wanted + strength * start
        )
        torch.testing.assert_close(fit[group], expected, rtol=1e-10, atol=1e-12)
    residual = torch.stack([y[:, g] - x[:, g] @ fit[g] for g in range(2)])
    torch.testing.assert_close(Sums.of(x, y).error(fit), residual.square().sum(1), rtol=1e-10, atol=0)


def test_ridge_keeps_the_old_weights_where_nothing_helps() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 1, 30, generator=generator, dtype=torch.float64)
    old = torch.randn(1, 30, 1, generator=generator, dtype=torch.float64)
    y = x.transpose(0, 1) @ old
    noisy = y.transpose(0, 1) + 10 * torch.randn(40, 1, 1, generator=generator, dtype=torch.float64)
    held_out = torch.arange(40) % 2 == 0
    noisy[held_out] = y.transpose(0, 1)[held_out]
    assert torch.equal(ridge(x, noisy, old, held_out=held_out, with_shift=False).weight, old)
    assert len(STRENGTHS) > 1


class Redundant(nn.Module):
    """Every hidden channel is there twice: half of them can go without any loss, if somebody repairs the readers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        last = {
            "strided": nn.Conv2d(8, 6, 3, stride=2, padding=1),
            "dilated": nn.Conv2d(8, 6, 3, dilation=2, bias=False),
        }
        self.last = last.get(kind) or nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.first.weight[4:] = self.first.weight[:4]
            self.first.bias[4:] = self.first.bias[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.last(torch.relu(self.first(x))))).mean((2, 3)))


@pytest.mark.parametrize("kind", ["strided", "dilated", "pointwise"])
def test_redundant_channels_are_replaced_exactly(kind: str) -> None:
    model, data = make(lambda: Redundant(kind)), batches()
    groups = hp.find_groups(model, data[0][0])
    first = next(group for group in groups if group.name == "first")
    facts = {"example_inputs": data[0][0], "provenance": {}}
    plan = plan_removing(model, groups, {first.name: (4, 5, 6, 7)}, hp.Budget(macs=0.9), **facts)
    pruned = hp.apply_plan(model, plan)
    teacher = [(x, model(x).detach()) for x, _ in data]
    repaired = compensate(model, pruned, plan, teacher, loss_fn=nn.MSELoss())
    x = data[0][0]
    before = float((pruned(x) - model(x)).detach().abs().max())
    after = float((repaired(x) - model(x)).detach().abs().max())
    assert after < 0.01 * before


class Stream(nn.Module):
    """Two blocks with the same features; only the last layer of the second can give what the first one loses."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.last, self.out = nn.Conv2d(6, 8, 1, bias=not norm), nn.Conv2d(6, 8, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        with torch.no_grad():
            self.first.weight[:, 4:] = 0  # reads channels that no block changes
            self.second.load_state_dict(self.first.state_dict())
            self.last.weight[:4] = self.out.weight[:4] = 0
            if not norm:
                self.last.bias[:4] = self.out.bias[:4] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.last(torch.relu(self.first(x)))
        x = x + self.norm(self.out(torch.relu(self.second(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("norm", [False, True])
def test_the_end_of_a_block_makes_up_for_what_the_stream_lost(norm: bool) -> None:
    model, data = make(lambda: Stream(norm)), batches()
    if norm:
        with torch.no_grad():  # channels 0 to 3 of the second block give nothing
            model.norm.bias[:4] = model.norm.weight[:4] * model.norm.running_mean[:4]
            model.norm.bias[:4] /= (model.norm.running_var[:4] + model.norm.eps).sqrt()
    groups = hp.find_groups(model, data[0][0])
    facts = {"example_inputs": data[0][0], "provenance": {}}
    plan = plan_removing(model, groups, {"first": (0, 1, 2, 3)}, hp.Budget(macs=0.9), **facts)
    pruned = hp.apply_plan(model, plan)
    teacher = [(x, model(x).detach()) for x, _ in data]
    repaired = compensate(model, pruned, plan, teacher, loss_fn=nn.MSELoss())
    x = data[0][0]
    before, after = (float((net(x) - model(x)).detach().abs().max()) for net in (pruned, repaired))
    assert after < 1e-3 * before


@pytest.mark.parametrize("case", [Plain, Residual, Grouped, Inverted, Flatten, Shared, Tokens])
def test_the_outputs_come_nearer_and_nothing_else_changes(case: type[nn.Module]) -> None:
    model, data = make(case), batches()
    x = data[0][0]
    plan = plan_for(model, x)
    pruned = hp.apply_plan(model, plan)
    states = copy.deepcopy(model.state_dict()), copy.deepcopy(pruned.state_dict())
    teacher_labels = [(inputs, model(inputs).argmax(1)) for inputs, _ in data]
    repaired = compensate(model, pruned, plan, teacher_labels, loss_fn=nn.CrossEntropyLoss())
    assert loss(repaired, teacher_labels) <= loss(pruned, teacher_labels)
    for state, owner in zip(states, (model, pruned), strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in owner.state_dict().items())
    assert {n: t.shape for n, t in repaired.state_dict().items()} == {
        n: t.shape for n, t in pruned.state_dict().items()
    }


@pytest.mark.parametrize("case", AWKWARD, ids=lambda case: case.__name__)
def test_a_plan_that_keeps_everything_changes_nothing(case: type[nn.Module]) -> None:
    model, x = make(case), image(batch=10)
    plan = plan_for(model, x, 1.0)
    repaired = compensate(
        model, hp.apply_plan(model, plan), plan, [(x, torch.zeros(10).long())], loss_fn=lambda f, _: f.abs().mean()
    )
    torch.testing.assert_close(repaired(x), model(x), rtol=1e-6, atol=1e-8)


def test_where_it_does_not_help_the_model_stays() -> None:
    model, data = make(Plain), batches()
    plan = plan_for(model, data[0][0])
    pruned = hp.apply_plan(model, plan)
    same = compensate(model, pruned, plan, data, loss_fn=lambda logits, _: 0 * logits.mean())
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), pruned.state_dict().values(), strict=True))


def test_one_shot_batches_are_refused() -> None:
    model, data = make(Plain), batches()
    plan = plan_for(model, data[0][0])
    with pytest.raises(hp.errors.DataError, match="must be re-iterable"):
        compensate(model, hp.apply_plan(model, plan), plan, iter(data))


class Counted:
    """Batches that count how many of them a pass has read."""

    def __init__(self, data: list[tuple[Tensor, Tensor]]) -> None:
        self.data, self.reads = data, [0]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.reads.append(0)
        for batch in self.data:
            self.reads[-1] += 1
            yield batch


def test_no_more_batches_are_read_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(Plain), image(batch=60)
    plan = plan_for(model, x)
    pruned = hp.apply_plan(model, plan)
    data = [(x[start : start + 5], torch.arange(5) % 4) for start in range(0, 60, 5)]
    uses = record(pruned, x).uses  # of two samples
    largest = max(math.prod(use.input_shape) + math.prod(use.output_shape) for use in uses) // 2
    monkeypatch.setattr(calibration, "MEMORY", 4 * calibration.LIVE * largest * 22)
    whole, counted = compensate(model, pruned, plan, [(x[:22], torch.arange(22) % 5 % 4)]), Counted(data)
    cut = compensate(model, pruned, plan, counted)
    assert max(counted.reads) == 5  # of 5 samples each: 22 fit
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True))


def test_shuffling_loaders_leave_the_random_state_alone() -> None:
    model, x = make(Plain), image(batch=40)
    plan = plan_for(model, x)
    pruned, data = hp.apply_plan(model, plan), DataLoader(TensorDataset(x, Y), batch_size=8, shuffle=True)
    state = torch.get_rng_state()
    first, again = (compensate(model, pruned, plan, data) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("boxes", [20, 32])
def test_boxes_of_all_images_stay_together(boxes: int) -> None:
    """They may be as many as images by chance; the loss then reads other images' outputs by number."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)), torch.randn(32, 6)
    sizes = []

    def loss_fn(output: Tensor, targets: Tensor) -> Tensor:
        sizes.append((len(output), len(targets)))
        return (output[targets[:, 0].long() % len(output)] - targets[:, 1:]).abs().mean()

    batches = [(x, torch.cat([torch.randint(0, 32, (boxes, 1)).float(), torch.rand(boxes, 5)], 1)) for _ in range(2)]
    hp.prune(net, x, batches, budget=hp.Budget(macs=0.5), method="magnitude", loss_fn=loss_fn)
    assert sizes[-1] == (32, boxes)


def test_autocast_inside_a_forward() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enter, self.inner, self.leave = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.leave(self.inner(self.enter(x).relu()).relu().mean((2, 3))).float()

    images = torch.randn(32, 3, 8, 8)
    pruned = hp.prune(Own(), images[:2], [images], budget=hp.Budget(macs=0.5), method="joint")
    assert pruned.model(images).dtype == torch.float32


@pytest.mark.parametrize("method", ["joint", "hap", "magnitude"])
def test_complex_parameters_stay_complex(method: str) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enter, self.inner, self.leave = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 16, 1), nn.Conv1d(16, 1, 1)
            self.weight = nn.Parameter(torch.randn(8, 8, 9, dtype=torch.cfloat) / 8)

        def forward(self, x: Tensor) -> Tensor:
            waves = torch.einsum("bix,iox->box", torch.fft.rfft(self.enter(x)), self.weight)
            return self.leave(self.inner(torch.fft.irfft(waves, n=x.shape[-1])).relu())

    x = torch.randn(16, 1, 16)
    pruned = hp.prune(Spectral(), x[:2], [(x, x)], budget=hp.Budget(macs=0.8), method=method, loss_fn=nn.MSELoss())
    assert pruned.model.weight.dtype == torch.cfloat


@pytest.mark.parametrize(("failing", "expected"), [(0, [64, 400]), (1, [64, 320, 400]), (2, [64, 320])])
def test_a_trial_on_few_samples_comes_first(failing: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    plan, sizes, own = plan_for(net, x[:1], 0.5), [], compensation.refitted

    def refitted(dense: nn.Module, pruned: nn.Module, plan: Plan, samples: list[Any], share: float = 1.0) -> nn.Module:
        sizes.append(sum(map(len, samples)))
        return pruned if len(sizes) <= failing else own(dense, pruned, plan, samples, share)

    monkeypatch.setattr(compensation, "refitted", refitted)
    pruned = hp.apply_plan(net, plan)
    found = compensate(net, pruned, plan, [x])
    assert sizes == expected
    assert torch.equal(found[2].weight, pruned[2].weight) == (failing == 2)
