"""Which objective a loss, the data and the outputs call for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.batches import Rereadable
from hessprune.objectives.choice import choose_objective

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


class Returning(nn.Module):
    """Returns what a function makes of a linear map."""

    def __init__(self, shape: Any, width: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.shape = nn.Linear(4, width), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.linear(x))


RULES = {
    "classes without labels": (lambda z: z, None, {"output": "divergence"}),
    "classes with labels": (lambda z: z, LABELS, {"output": "divergence"}),
    "classes with labels (N, 1)": (lambda z: z, LABELS[:, None].to(torch.int32), {"output": "divergence"}),
    "probabilities": (lambda z: z, F.one_hot(LABELS, 3).float(), {"output": "divergence"}),
    "pixels": (lambda z: z[:, :, None].expand(-1, -1, 5), LABELS[:, None].expand(-1, 5), {"output": "divergence"}),
    "images": (lambda z: z[:, :, None].expand(-1, -1, 5), None, {"output": "squared error"}),
    "numbers": (lambda z: z, torch.randn(12, 3), {"output": "squared error"}),
    "one number": (lambda z: z[:, :1], None, {"output": "squared error"}),
    "no axis of outputs": (lambda z: z[:, 0], None, {"output": "squared error"}),
    "several labels per image": (lambda z: z, torch.ones(12, 3, dtype=torch.int64), {"output": "squared error"}),
    "two heads": (
        lambda z: {"logits": z, "boxes": z[:, :2]},
        None,
        {"logits": "divergence × 0.5", "boxes": "squared error × 0.5"},
    ),
    "two heads, each with labels": (
        lambda z: (z, z[:, :2]),
        (LABELS, LABELS % 2),
        {"0": "divergence × 0.5", "1": "divergence × 0.5"},
    ),
    "an auxiliary head": (lambda z: (z, -z), LABELS, {"0": "divergence × 0.5", "1": "divergence × 0.5"}),
    "two heads with labels": (
        lambda z: (z, z[:, :2]),
        LABELS,
        {"0": "divergence × 0.5", "1": "squared error × 0.5"},
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_for_outputs(name: str) -> None:
    shape, targets, expected = RULES[name]
    assert choose_objective(Returning(shape), [(X, targets)]).facts()["outputs"] == expected


def test_tokens_are_classes_along_the_last_axis() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(7, 7)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.e(input_ids)}

    ids = torch.arange(12).view(3, 4) % 7
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    objective = choose_objective(Language(), [{"input_ids": ids, "attention_mask": mask, "labels": ids}])
    assert (objective.parts[0].rule, objective.parts[0].axis) == ("divergence", 2)
    loss = objective.on({"input_ids": ids, "attention_mask": mask}, None, 3)
    loss.factor(objective.read(Language()(ids), 3))
    assert loss.weight() == 7.0


def test_numbers_are_compared_in_units_of_their_deviation() -> None:
    model = Returning(lambda z: 100 * z)
    objective = choose_objective(model, [(X[:5], X[:5]), (X[5:], X[5:])])
    assert objective.parts[0].deviation == pytest.approx(
        float((100 * model.linear(X)).detach().std(correction=0)), rel=1e-5
    )


def test_outputs_are_picked_and_weighed() -> None:
    model = Returning(lambda z: {"logits": z, "boxes": z[:, :2], "other": z[:, :1]})
    picked = choose_objective(model, [X], outputs=["boxes"])
    assert picked.facts()["outputs"] == {"boxes": "squared error"}
    weighed = choose_objective(model, [X], outputs={"logits": 3, "boxes": 1.0})
    assert weighed.facts()["outputs"] == {"logits": "divergence × 0.75", "boxes": "squared error × 0.25"}
    for wrong, match in (
        (["nothing"], "must name outputs of the model, some of 'logits', 'boxes', 'other', got 'nothing'"),
        ({"logits": 0.0}, "must weigh 'logits' by a positive number, got 0.0"),
        ("logits", "must be names of outputs, or weights by name, got 'logits'"),
    ):
        with pytest.raises(hp.errors.ArgumentError, match=match):
            choose_objective(model, [X], outputs=wrong)


def test_a_loss_overrides_and_labels_are_used_where_they_are_preferred() -> None:
    model, data = Returning(lambda z: z), [(X, LABELS)]
    assert choose_objective(model, data, F.mse_loss).facts() == {"loss": "mse_loss"}
    assert choose_objective(model, data, prefer="labels").facts() == {"loss": "cross_entropy"}
    assert choose_objective(model, [X], prefer="labels").facts()["loss"] == "dense outputs"
    with pytest.raises(hp.errors.DataError, match=r"must hold labels for 'taylor', .*or the loss as `loss_fn`"):
        choose_objective(model, [X], prefer="gradient", asker="'taylor'")
    with pytest.raises(hp.errors.ArgumentError, match="must be a function of \\(output, targets\\), got str"):
        choose_objective(model, data, "mse")
    with pytest.raises(hp.errors.DataError, match="must hold one entry for each of 12 samples, got int64 \\(3,\\)"):
        choose_objective(model, [(X, LABELS[:3])])


def test_a_series_of_single_numbers_beside_words_has_no_classes() -> None:
    """Detectors by words give one logit for each place and query, perhaps for one query."""

    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(9, 4), nn.Linear(3, 4)

        def forward(self, input_ids: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.places(places) @ self.words(input_ids).mean(1)[:, :, None]}

    inputs = {"input_ids": torch.randint(9, (6, 5)), "places": torch.randn(6, 5, 3)}
    objective = choose_objective(Queries(), Rereadable([inputs]), None)
    assert [part.rule for part in objective.parts] == ["squared error"]
