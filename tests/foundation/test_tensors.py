import pytest
import torch

from hessprune.foundation.tensors import laid_out_as


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4, 1, 1), (8, 1, 3, 3), (8, 4, 3, 3, 3)])
@pytest.mark.parametrize("last", [True, False])
def test_the_memory_format_is_that_of_the_old_tensor(shape, last):
    form = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)] if last else torch.contiguous_format
    old = torch.empty(shape, memory_format=form)
    new = torch.randn(shape)[:6]
    moved = laid_out_as(old, new)
    assert torch.equal(moved, new)
    assert moved.stride() == torch.empty(new.shape, memory_format=form).stride()


def test_other_tensors_stay_themselves():
    for old in (torch.empty(3), torch.empty(4, 3).T, torch.empty(2, 3, 4, 5).permute(3, 0, 1, 2)):
        new = torch.randn(old.shape)
        assert laid_out_as(old, new) is new
