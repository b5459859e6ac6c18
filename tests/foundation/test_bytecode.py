"""Names that functions read and change, from their code."""

import pytest
import torch

from hessprune.foundation.bytecode import globals_read, is_installed, names_changed

LIMIT = 3
scale = 5
"""A global that has the name of an attribute below."""


class Stateful:
    def __init__(self):
        self.calls, self.scale = 0, 1

    def counts(self, x):
        self.calls += 1
        return x * self.scale

    def remembers(self, x):
        self.seen[len(x)] = x
        self.table["all"]["n"] += 1
        return self.fixed["n"], self.other.get("n")

    def collects(self, x):
        self.outputs.append(x)
        self.sums.add_(x)
        del self.memory["last"]

    def within(self, x):
        with torch.no_grad():
            for place in range(LIMIT):
                self.places[place] = sorted(x)
        self.chosen[x.index + len(x)] = f"{x}"


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (Stateful.__init__, set()),
        (Stateful.counts, {"calls"}),
        (Stateful.remembers, {"seen", "table"}),
        (Stateful.collects, {"outputs", "sums", "memory"}),
        (Stateful.within, {"places", "chosen"}),
    ],
)
def test_what_is_set_or_changed_in_place_is_found(function, names):
    assert names_changed(function) == names


def test_attributes_are_no_globals_of_the_same_name():
    assert dict(globals_read(Stateful.counts)) == {}
    assert dict(globals_read(Stateful.within))["LIMIT"] == LIMIT


def test_files_of_the_user_are_not_installed():
    assert [is_installed(name) for name in ("torch.nn", "json", "pytest", __name__)] == [True, True, True, False]
