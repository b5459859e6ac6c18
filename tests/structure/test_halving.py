from types import SimpleNamespace

import pytest

from hessprune.structure.halving import passing


@pytest.mark.parametrize("bad", [set(), {3}, {0, 7}, set(range(8))])
def test_those_that_fail_are_found_and_the_others_pass_together(bad):
    groups, tried = [SimpleNamespace(name=name) for name in range(8)], []

    def failure(some):
        tried.append(len(some))
        return ", ".join(str(group.name) for group in some if group.name in bad)

    works, fails = passing(groups, failure)
    assert [group.name for group in works] == [name for name in range(8) if name not in bad]
    assert [(group.name, reason) for group, reason in fails] == [(name, str(name)) for name in sorted(bad)]
    assert len(tried) <= 1 + 6 * len(bad)


def test_a_group_that_can_be_mended_goes_on_in_its_new_form():
    groups = [SimpleNamespace(name=name) for name in "abc"]

    def mend(group, beside):
        assert [other.name for other in beside] == ["a"]
        return SimpleNamespace(name=group.name.upper())

    works, fails = passing(groups, lambda some: "b fails" * any(group.name == "b" for group in some), mend)
    assert [group.name for group in works] == ["a", "B", "c"]
    assert not fails


def test_nothing_is_tried_for_no_groups():
    assert passing([], lambda some: pytest.fail(f"tried {some}")) == ([], [])
