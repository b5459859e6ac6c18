import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprune as hp
from hessprune.errors import DataError
from hessprune.foundation.losses import as_cross_entropy, labels_for, loss_weight

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


@pytest.mark.parametrize("method", ["taylor", "hap"])
def test_masks_with_an_axis_of_channels_are_to_be_squeezed(method):
    net, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 5, 5)
    masks = torch.zeros(2, 1, 5, 5).long()
    loss = None if method == "taylor" else F.cross_entropy
    with pytest.raises(DataError, match=r"int64 \(2, 1, 5, 5\) .*Drop the axis .*targets\.squeeze\(1\)\. Give"):
        hp.saliency(net, hp.find_groups(net, x), [(x, masks)], method, loss_fn=loss)


def test_cross_entropy_is_recognised_and_nothing_else():
    class Other(nn.CrossEntropyLoss):
        def forward(self, input, target):
            return super().forward(input, target) + 1

    weighted = nn.CrossEntropyLoss(weight=torch.ones(3))
    assert as_cross_entropy(weighted) is weighted
    assert all(isinstance(as_cross_entropy(loss), nn.CrossEntropyLoss) for loss in (None, F.cross_entropy))
    assert all(as_cross_entropy(loss) is None for loss in (F.mse_loss, nn.MSELoss(), Other(), lambda z, y: z.sum()))


@pytest.mark.parametrize(
    "targets",
    [
        LABELS.bool(),
        LABELS.to(torch.uint8),
        LABELS.int(),
        LABELS[:, None],
        LABELS.bool()[:, None],
        LABELS.tolist(),
        LABELS.numpy(),
    ],
)
def test_labels_of_any_integer_type_and_of_one_column_are_cast(targets):
    assert torch.equal(labels_for(LOGITS, targets), LABELS)


def test_ignored_labels_are_not_out_of_range_and_do_not_count():
    targets = LABELS.clone()
    targets[2] = 255
    assert torch.equal(labels_for(LOGITS, targets, ignore_index=255), targets)
    assert loss_weight(nn.CrossEntropyLoss(ignore_index=255), targets) == 5
    with pytest.raises(DataError, match="255"):
        labels_for(LOGITS, targets)


def test_probabilities_count_by_row():
    probabilities = LOGITS.softmax(1)
    assert torch.equal(labels_for(LOGITS, probabilities), probabilities)
    assert loss_weight(nn.CrossEntropyLoss(), probabilities) == 6


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (LOGITS, LABELS[:5], "one integer label"),
        (LOGITS, 2 * LOGITS.softmax(1), "class probabilities.*loss_fn"),
        (LOGITS, {"boxes": LABELS}, "a tensor of labels.*loss_fn"),
        (LOGITS[:, :1], LABELS, "logits of shape.*loss_fn"),
    ],
)
def test_wrong_targets_name_the_remedy(logits, targets, message):
    with pytest.raises(DataError, match=message):
        labels_for(logits, targets)
