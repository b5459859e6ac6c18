from dataclasses import replace

from hessprune.lab.report import EpochPoint
from hessprune.lab.report.kept_epochs import kept_epoch, kept_whole
from tests.lab.report.values import small_report


def epochs(*accuracies):
    return tuple(
        EpochPoint(epoch=epoch, train_loss=None, validation_loss=1.0, validation_accuracy=accuracy)
        for epoch, accuracy in enumerate(accuracies)
    )


def test_the_first_of_equals_is_kept():
    assert kept_epoch(epochs(0.5, 0.9, 0.9)) == 1
    assert kept_epoch(()) is None


def test_a_training_that_improved_nothing_is_named():
    report = replace(small_report(), history={"pretrain": epochs(0.9, 0.1), "finetune": epochs(0.9, 0.8)})
    assert kept_whole(report) == ("Fine-tuning: epoch 0 was kept, training did not improve it.",)
    assert kept_whole(small_report()) == ()
