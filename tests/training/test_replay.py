import pytest
import torch

from hessprune.training.replay import derived_seed, num_steps, replayed


class Noisy:
    def __iter__(self):
        for _ in range(4):
            yield torch.rand(1).item()


class Sought:
    def __init__(self) -> None:
        self.calls = []

    def set_epoch(self, epoch):
        self.calls.append(epoch)

    def iterate(self, epoch, start_step):
        self.calls.append((epoch, start_step))
        return iter([10 * epoch + step for step in range(start_step, 3)])


@pytest.mark.parametrize("start_step", [0, 1, 4])
def test_beginning_in_the_middle_gives_the_same_batches_whatever_is_drawn_between(start_step):
    whole = list(replayed(Noisy(), seed=0, epoch=1))
    part = []
    for value in replayed(Noisy(), seed=0, epoch=1, start_step=start_step):
        part.append(value)
        torch.rand(3)
    assert part == whole[start_step:]


def test_epochs_and_seeds_differ():
    runs = [list(replayed(Noisy(), seed=seed, epoch=epoch)) for seed, epoch in ((0, 1), (0, 2), (1, 1))]
    assert len({value for run in runs for value in run}) == 12


def test_batches_that_can_seek_are_asked_to():
    batches = Sought()
    assert list(replayed(batches, seed=0, epoch=2, start_step=1)) == [21, 22]
    assert batches.calls == [2, (2, 1)]


def test_the_callers_random_state_stays():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(replayed(Noisy(), seed=0, epoch=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_without_a_length_are_counted():
    assert num_steps(Noisy()) == 4
    assert num_steps([0, 0]) == 2


def test_derived_seeds_are_stable_and_valid():
    assert derived_seed(0, "step", 1, 2) == derived_seed(0, "step", 1, 2)
    assert 0 <= derived_seed(5) < 2**63
