"""Groups print in a few lines, without positions; the details have a method of their own."""

from hessprune.structure.find import find_groups
from hessprune.structure.groups import Group, Groups, Slice
from tests.cases import AWKWARD, Plain, image, make

GROUPS = find_groups(make(Plain), image())


def test_printing_is_short() -> None:
    assert str(GROUPS).splitlines() == [
        "Groups(3 groups, 30 units)",
        "largest: body.1.0 (12 channels), body.2.0 (10 channels), body.0.0 (8 channels)",
        "frozen axes: 1 because it meets the model's input 'x', 2 because the model returns it",
    ]
    assert repr(GROUPS) == "Groups(3 groups, 30 units)"
    for case in AWKWARD:
        text = str(find_groups(make(case), image()))
        assert len(text.splitlines()) <= 5
        assert "((" not in text


def test_one_group_prints_its_slices() -> None:
    group = GROUPS[0]
    assert repr(group) == "Group('body.0.0', 8 channels, 6 slices)"
    assert repr(group.slices[0]) == "Slice(producer body.0.0.weight dim 0, 8 units)"
    wide = Slice(param="a", dim=1, index=((0, 1), (2, 3)), role="consumer")
    assert repr(wide) == "Slice(consumer a dim 1, 2 units (2 each))"
    assert str(Group(name="a", num_units=2, slices=(wide,))) == "a: 2 channels\n  consumer a dim 1 (2 each)"


def test_the_table_has_all_slices_and_what_is_frozen() -> None:
    text = GROUPS.table()
    assert "body.0.0: 8 channels" in text
    assert "consumer body.1.0.weight dim 1" in text
    assert "frozen: the model returns it\n  head.weight dim 0, head.bias dim 0" in text


def test_groups_are_a_table_in_notebooks() -> None:
    page = GROUPS._repr_html_()
    assert "<td>body.1.0</td><td>channels</td><td>12</td>" in page
    assert "<td>2</td><td>the model returns it</td>" in page
    assert Groups()._repr_html_().count("<table>") == 1
