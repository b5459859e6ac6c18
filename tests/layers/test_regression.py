"""The rows of a regression belong to samples, wherever a layer keeps its samples."""

import pytest
import torch

from hessprune.layers.regression import design, outputs_by_sample, rows_by_sample, rows_of, samples_of_rows, word_rows
from hessprune.operators.maps import Convolution, Linear, SampleLayout

CONVOLUTION = Convolution(stride=(1,), padding=(1,), dilation=(1,), output_padding=(0,))
CALLS = {  # with the shape of the output, and what tells its sample
    "convolution": (CONVOLUTION, (3, 5, 4), lambda n: n[:, None, None]),
    "frames": (CONVOLUTION, (6, 5, 4), lambda n: n.repeat_interleave(2)[:, None, None]),
    "tokens": (Linear(samples=3), (3, 4, 5), lambda n: n[:, None, None]),
    "sequence first": (Linear(samples=3, layout=SampleLayout(axis=1)), (4, 3, 5), lambda n: n[None, :, None]),
    "samples inside": (Linear(samples=3, layout=SampleLayout(inner=True)), (12, 5), lambda n: n.repeat(4)[:, None]),
}


@pytest.mark.parametrize("name", CALLS)
def test_rows_and_outputs_are_sorted_by_sample(name):
    call, shape, spread = CALLS[name]
    out = spread(torch.arange(3.0)).expand(shape)
    numbers = rows_by_sample(call, out, 3)
    assert numbers.flatten().sort().values.tolist() == list(range(len(rows_of(call, out))))
    expected = torch.arange(3.0)[:, None].expand(numbers.shape)
    assert torch.equal(rows_of(call, out)[numbers][..., 0], expected)
    assert torch.equal(outputs_by_sample(call, out, 3)[..., 0], expected)
    assert torch.equal(samples_of_rows(call, out, 3), rows_of(call, out)[:, 0].long())


def test_rows_that_samples_do_not_share_evenly_lie_in_about_their_order():
    assert samples_of_rows(Linear(samples=3), torch.zeros(4, 5), 3).tolist() == [0, 0, 1, 2]


def test_words_are_rows_of_their_samples():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    inside = Linear(samples=3, layout=SampleLayout(inner=True))
    assert torch.equal(word_rows(inside, torch.zeros(12, 5), {4: mask}), mask.T.flatten())
    assert torch.equal(word_rows(Linear(samples=3), torch.zeros(3, 4, 5), {9: mask[:, :3], 4: mask}), mask.flatten())
    assert word_rows(Linear(samples=3), torch.zeros(3, 4, 5), {4: mask | True}) is None
    assert word_rows(CONVOLUTION, torch.zeros(3, 5, 4), {4: mask}) is None


def test_a_design_times_the_weight_is_the_output():
    x, weight = torch.randn(3, 2, 6).double(), torch.randn(4, 2, 3).double()
    out = CONVOLUTION.forward(x, weight, None)
    numbers = rows_by_sample(CONVOLUTION, out, 3).flatten()
    rows = design(CONVOLUTION, x, weight, numbers)[:, 0] @ weight.flatten(1).T
    torch.testing.assert_close(rows, rows_of(CONVOLUTION, out), rtol=1e-10, atol=1e-12)
