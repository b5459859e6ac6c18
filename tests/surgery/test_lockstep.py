"""Runs in lockstep: they meet at named points, in an order of their own, and errors reach the caller."""

import threading

import pytest

from hessprune.surgery.lockstep import in_lockstep


def test_runs_meet_at_equal_points_and_work_one_at_a_time() -> None:
    seen, running = [], []

    def run(number: int):
        def work(pause) -> None:
            for name in ("a", "b"):
                running.append(number)
                assert len(running) == 1
                running.clear()
                pause(name, (name, number))

        return work

    in_lockstep([run(n) for n in range(3)], lambda name, brought: seen.append((name, brought)))
    assert seen == [(name, [(name, n) for n in range(3)]) for name in ("a", "b")]


def test_runs_that_skip_a_point_or_end_early_do_not_hold_up_the_others() -> None:
    seen = []

    def whole(pause) -> None:
        for name in "abc":
            pause(name, 1)

    def part(pause) -> None:
        pause("b", 2)

    in_lockstep([whole, part, lambda pause: None], lambda name, brought: seen.append((name, brought)))
    assert seen == [("a", [1]), ("b", [1, 2]), ("c", [1])]


def test_one_run_needs_no_thread() -> None:
    threads = []
    in_lockstep([lambda pause: threads.append(threading.current_thread())], lambda *_: None)
    assert threads == [threading.current_thread()]


def test_errors_of_runs_and_meetings_reach_the_caller_and_leave_no_thread() -> None:
    before = threading.active_count()

    def failing(pause) -> None:
        pause("a", 0)
        raise ValueError("in a run")

    with pytest.raises(ValueError, match="in a run"):
        in_lockstep([failing, lambda pause: pause("a", 1)], lambda *_: None)

    def refuse(name: str, brought: list) -> None:
        raise KeyError("in a meeting")

    with pytest.raises(KeyError, match="in a meeting"):
        in_lockstep([lambda pause: pause("a", 1)] * 2, refuse)
    assert threading.active_count() == before
