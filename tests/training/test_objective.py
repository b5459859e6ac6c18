import pytest
import torch
import torch.nn.functional as F

from hessprune.foundation.words import next_word
from hessprune.training.config import FinetuneConfig
from hessprune.training.objective import distillation_loss, objective


def _logits(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5, 5)])
def test_distillation_is_the_textbook_divergence(shape):
    student, teacher = _logits(*shape)
    p, q = (torch.softmax(z.double() / 3.0, 1) for z in (teacher, student))
    expected = 9.0 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation_loss(student, teacher, 3.0)) == pytest.approx(float(expected), rel=1e-5)


def test_its_gradient_keeps_its_size_at_high_temperature():
    student, teacher = _logits(64, 10)
    norms = []
    for temperature in (10.0, 100.0):
        leaf = student.clone().requires_grad_()
        distillation_loss(leaf, teacher, temperature).backward()
        norms.append(float(leaf.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_both_parts_are_weighted(weight):
    student, teacher = _logits(4, 3)
    targets = torch.tensor([0, 1, 2, 0])
    config = FinetuneConfig(distill_weight=weight, distill_temperature=2.0, label_smoothing=0.1)
    expected = (1 - weight) * F.cross_entropy(student, targets, label_smoothing=0.1)
    expected += weight * distillation_loss(student, teacher, 2.0)
    assert float(objective(student, targets, teacher, config)) == pytest.approx(float(expected))


def test_unlabelled_data_can_be_distilled():
    student, teacher = _logits(4, 3)
    config = FinetuneConfig(distill_weight=1.0)
    assert torch.isfinite(objective(student, torch.full((4,), -100), teacher, config))


def test_without_a_teacher_it_is_cross_entropy():
    student, _ = _logits(4, 3)
    targets = torch.tensor([0, 1, 2, 0])
    assert torch.equal(objective(student, targets, None, FinetuneConfig()), F.cross_entropy(student, targets))


def test_the_softmax_of_a_language_model_is_over_words():
    student, teacher = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))  # (N, T, V)
    config = FinetuneConfig(distill_weight=1.0, distill_temperature=1.0)
    found = objective(student, None, teacher, config, next_word)
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    assert float(found) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)


def test_padding_of_texts_is_not_distilled():
    student, teacher = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))  # (N, T, V)
    config = FinetuneConfig(distill_weight=1.0, distill_temperature=1.0)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"input_ids": torch.ones(2, 5, dtype=torch.int64), "attention_mask": mask}
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)[mask.bool()].mean()
    for loss_fn in (next_word, None, lambda output, _: output.mean()):  # words tell the axis, whatever the loss
        found = objective(student, None, teacher, config, loss_fn, inputs=inputs)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
