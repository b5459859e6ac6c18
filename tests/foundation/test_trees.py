import pytest
import torch

from hessprune.foundation.trees import describe_shapes, join_inputs, sample_rows, shared_in

TABLE, SCALE = torch.arange(3.0)[None], torch.tensor(2.0)


@pytest.mark.parametrize("shared", [TABLE, SCALE])
def test_what_belongs_to_all_samples_stays_whole(shared):
    batches = [{"x": torch.arange(5.0) + start, "beside": shared} for start in (0, 5)]
    some = sample_rows(batches[0], torch.tensor([0, -1]))
    assert some["x"].tolist() == [0, 4]
    assert some["beside"] is shared
    assert shared_in(batches[0])[0] is shared
    joined = join_inputs(batches)
    assert joined["x"].tolist() == [*range(10)]
    assert joined["beside"] is shared


def test_batches_of_any_size_have_the_same_shapes_behind_the_samples():
    first, second = ((torch.zeros(size, 4), TABLE, SCALE) for size in (5, 7))
    assert describe_shapes(first) == describe_shapes(second)
    assert describe_shapes(first) != describe_shapes((torch.zeros(5, 4), TABLE[:, :2], SCALE))
