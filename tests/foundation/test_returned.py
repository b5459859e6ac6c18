import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.returned import check_average, check_depends, loss_on, number_on

OUTPUT, TARGETS = torch.ones(4, 2, requires_grad=True), torch.zeros(4, 2)


class OfOutput(nn.Module):
    """A loss of one argument."""

    def forward(self, output):
        return output.mean()


@pytest.mark.parametrize("value", [0.5, True, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.ones(1, 1) / 2])
def test_numbers_of_any_kind_are_numbers(value):
    assert number_on(lambda output, targets: value, OUTPUT, TARGETS, "metric") == float(value)


@pytest.mark.parametrize(
    ("value", "form"),
    [(None, "NoneType"), ("1", "str"), ((1.0, 2.0), "tuple"), (np.ones(3), r"\(3,\)"), (torch.ones(4), r"\(4,\)")],
)
def test_anything_else_is_named(value, form):
    with pytest.raises(ArgumentError, match=rf"`metric` must give one number for a batch, got {form}\. Average"):
        number_on(lambda output, targets: value, OUTPUT, TARGETS, "metric")
    with pytest.raises(ArgumentError, match=rf"`loss_fn` must return one number .* got {form}\. Average"):
        loss_on(lambda output, targets: value, OUTPUT, TARGETS)


def test_a_loss_is_a_scalar_with_its_gradient():
    loss = loss_on(lambda output, targets: F.mse_loss(output, targets).reshape(1, 1), OUTPUT, TARGETS)
    assert loss.shape == ()
    check_depends(loss)
    with pytest.raises(ArgumentError, match="`loss_fn` must depend on the model's outputs"):
        check_depends(loss.detach())
    with pytest.raises(ArgumentError, match="a tensor with a gradient, got float"):
        loss_on(lambda output, targets: 1.0, OUTPUT, TARGETS)


@pytest.mark.parametrize("loss_fn", [lambda output: output.mean(), OfOutput(), lambda a, b, c: a.mean()])
def test_functions_of_other_arguments_are_named(loss_fn):
    with pytest.raises(ArgumentError, match="`loss_fn` must take the output and the targets"):
        loss_on(loss_fn, OUTPUT, TARGETS)


def test_missing_targets_are_named_with_the_reason():
    with pytest.raises(
        DataError, match=r"must hold targets for `loss_fn`, got inputs alone \(AttributeError: .*\)\. Yi"
    ):
        loss_on(F.mse_loss, OUTPUT, None)


@pytest.mark.parametrize("call", [loss_on, lambda *given: number_on(*given, "loss_fn")])
def test_swapped_arguments_are_named_with_the_reason(call):
    labels = torch.zeros(4, dtype=torch.int64)
    reason = r"got NotImplementedError: .*log_softmax.* from loss_fn\(float32 \(4, 2\), int64 \(4,\)\)\. It is"
    with pytest.raises(ArgumentError, match=reason):
        call(lambda targets, output: F.cross_entropy(output, targets), OUTPUT, labels)


def test_errors_of_a_device_stay():
    def full(output, targets):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        loss_on(full, OUTPUT, TARGETS)


def test_errors_of_a_function_of_its_own_stay():
    with pytest.raises(TypeError, match="unsupported operand"):
        loss_on(lambda output, targets: output.mean() + {}, OUTPUT, TARGETS)
    with pytest.raises(KeyError):
        loss_on(lambda output, targets: {}["a"], OUTPUT, None)


def test_sums_and_vectors_do_not_average():
    check_average(nn.KLDivLoss(reduction="batchmean"))
    for reduction in ("sum", "none"):
        with pytest.raises(ArgumentError, match=f"must average over samples, got reduction='{reduction}'"):
            check_average(nn.CrossEntropyLoss(reduction=reduction))
