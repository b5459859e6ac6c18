"""The distance to the dense outputs is zero there, and its Hessian is that of automatic differentiation."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.objectives.choice import choose_objective
from hessprune.objectives.dense import DenseOutputs, Part
from hessprune.objectives.masks import sampled_positions
from hessprune.objectives.outputs import Outputs

EXACT = {"rtol": 1e-9, "atol": 1e-12}


def objective(kinds: dict[str, Part], example: dict[str, Tensor], temperature: float = 1.0) -> DenseOutputs:
    alone = {name: tensor[:1] for name, tensor in example.items()}
    outputs = Outputs.find({name: tensor[:2] for name, tensor in example.items()}, alone)
    return DenseOutputs(outputs=outputs, parts=tuple(kinds.values()), temperature=temperature)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES = {
    "classes": ({"a": Part(name="a", rule="divergence")}, {"a": random(3, 4)}),
    "pixels": ({"a": Part(name="a", rule="divergence")}, {"a": random(3, 4, 2, 2)}),
    "tokens": ({"a": Part(name="a", rule="divergence", axis=2)}, {"a": random(3, 5, 4)}),
    "numbers": ({"a": Part(name="a", rule="squared error", deviation=2.0)}, {"a": random(3, 4, 2)}),
    "one number": ({"a": Part(name="a", rule="squared error")}, {"a": random(3)}),
    "both": (
        {
            "a": Part(name="a", rule="divergence", share=0.25),
            "b": Part(name="b", rule="squared error", deviation=3.0, share=0.75),
        },
        {"a": random(3, 4), "b": random(3, 2, 5)},
    ),
}


def distance(goal: DenseOutputs, dense: Tensor, values: Tensor, example: dict[str, Tensor]) -> Tensor:
    """An oracle: the mean over samples of the weighted means over positions."""
    places, total = 0, torch.zeros((), dtype=torch.float64)
    flat = values.reshape(len(values), -1)
    old = dense.reshape(len(dense), -1)
    for part in goal.parts:
        shape = part.canonical(example[part.name]).shape
        size = shape[1:].numel()
        a, b = (x[:, places : places + size].reshape(shape) for x in (old, flat))
        places += size
        if part.rule == "divergence":
            p = (a / goal.temperature).softmax(1)
            each = (p * ((a / goal.temperature).log_softmax(1) - (b / goal.temperature).log_softmax(1))).sum(1)
        else:
            each = (a - b).square() / part.deviation**2
        total = total + part.share * each.mean()
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", CASES)
def test_the_factor_squares_to_the_hessian_of_the_distance(name: str, temperature: float) -> None:
    parts, example = CASES[name]
    goal = objective(parts, example, temperature)
    values = goal.read(example, 3)
    loss = goal.on(None, None, 3)
    loss.see([(example, 3)], values)
    factor = loss.factor(values)
    rows, size = torch.arange(3), values[0].numel()
    columns = [factor.columns(rows, torch.full((3,), k)).reshape(3, size) for k in range(factor.mass.shape[1])]
    square = torch.einsum("nak,nbk->nab", *[torch.stack(columns, 2)] * 2) / factor.weight
    whole = torch.autograd.functional.hessian(lambda v: distance(goal, values, v, example), values)
    blocks = whole.reshape(3, size, 3, size)[rows, :, rows]
    torch.testing.assert_close(square, blocks, **EXACT)
    torch.testing.assert_close(factor.mass.sum(1) / factor.weight, blocks.diagonal(dim1=1, dim2=2).sum(1), **EXACT)
    ours = torch.autograd.functional.hessian(lambda v: loss.loss(v, rows), values).reshape(3, size, 3, size)
    torch.testing.assert_close(ours[rows, :, rows], blocks, **EXACT)
    assert not loss.slope(values).any()


@pytest.mark.parametrize("name", CASES)
def test_models_are_judged_by_the_distance(name: str) -> None:
    parts, example = CASES[name]
    goal = objective(parts, example)
    other = {key: tensor + 0.1 * random(*tensor.shape).flip(0) for key, tensor in example.items()}
    loss, weight = goal.judge(other, example, None, None, 3)
    expected = distance(goal, goal.read(example, 3), goal.read(other, 3), example)
    assert loss == pytest.approx(float(expected))
    assert weight == (3 * {"pixels": 4, "tokens": 5}.get(name, 1))
    assert goal.judge(example, example, None, None, 3)[0] == pytest.approx(0, abs=1e-12)
    batch = goal.on(None, None, 3)
    batch.see([(example, 3)], goal.read(example, 3))
    shift = goal.read(other, 3) - goal.read(example, 3)
    rises = batch.rises(goal.read(example, 3), torch.arange(3), torch.stack([0 * shift, shift]))
    torch.testing.assert_close(rises, torch.tensor([0.0, loss], dtype=torch.float64))


def test_masked_positions_move_at_no_cost() -> None:
    goal = objective({"a": Part(name="a", rule="divergence", axis=2)}, {"a": random(2, 3, 4)})
    inputs = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    dense, moved = random(2, 3, 4), random(2, 3, 4)
    moved[0, 2] *= 5
    moved[1, 1:] *= -7
    assert goal.judge({"a": moved}, {"a": dense}, inputs, None, 2) == (pytest.approx(0), 3.0)
    labels = torch.tensor([[0, 1, -100], [2, -100, -100]])
    assert goal.judge({"a": moved}, {"a": dense}, None, labels, 2) == (pytest.approx(0), 3.0)
    assert goal.judge({"a": moved}, {"a": dense}, None, None, 2)[0] > 0.1


def test_the_rules_are_facts() -> None:
    parts, example = CASES["both"]
    assert objective(parts, example).facts() == {
        "loss": "dense outputs",
        "outputs": {"a": "divergence × 0.25", "b": "squared error × 0.75"},
    }


class Words(nn.Module):
    """Logits of a large vocabulary at every position of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 4096)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.head(self.table(input_ids))}


def test_a_large_vocabulary_counts_at_sampled_positions() -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(9, (2, 400)), torch.ones(2, 400, dtype=torch.int64)
    mask[1, 100:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    dense, other = (Words().double().requires_grad_(False) for _ in range(2))
    objective = choose_objective(dense, [inputs])
    assert objective.facts()["outputs"] == {"logits": "divergence at 256 positions"}
    chosen = [sampled_positions(400, 256), torch.arange(100)]  # all words of the padded text
    before, after = (model(**inputs)["logits"].log_softmax(2) for model in (dense, other))
    every = (before.exp() * (before - after)).sum(2)
    each = torch.cat([row[drawn] for row, drawn in zip(every, chosen, strict=True)])
    expected = each.mean()
    found, weight = objective.judge(other(**inputs), dense(**inputs), inputs, None, 2)
    assert (round(found, 9), weight) == (round(float(expected), 9), 356.0)
    values = objective.read(dense(**inputs), 2, inputs)
    assert values.shape == (2, 4096, 256)
    factor = objective.on(inputs, None, 2).factor(values)
    probability = before.exp()
    traces = (probability * (1 - probability)).sum(2)
    trace = sum(row[drawn].sum() for row, drawn in zip(traces, chosen, strict=True))
    assert torch.allclose(factor.mass.sum(), trace)


@pytest.mark.parametrize("loss_fn", [None, "next_word"])
@pytest.mark.parametrize("length", [6, 600])
@pytest.mark.parametrize("left", [False, True])
def test_a_text_has_the_same_words_drawn_however_it_is_padded(loss_fn: str | None, length: int, left: bool) -> None:
    torch.manual_seed(0)
    text, model = torch.randint(9, (2, length)), Words().double().requires_grad_(False)
    ids, mask = torch.zeros(2, 2, length + 600, dtype=torch.int64)
    at = slice(600, None) if left else slice(length)
    ids[:, at], mask[:, at] = text, 1
    found = []
    for inputs in ({"input_ids": text}, {"input_ids": ids, "attention_mask": mask}):
        objective = choose_objective(model, [inputs], loss_fn)
        values, loss = objective.read(model(**inputs), 2, inputs), objective.on(inputs, None, 2)
        loss.see([(model(**inputs), 2)], values)
        few = slice(min(length, 256))
        found.append((values[:, :, few], torch.tensor(loss.weight()), loss.slope(values + 1)[:, :, few]))
    torch.testing.assert_close(*found)
    assert found[0][1] > 0


def test_a_short_text_counts_as_a_whole() -> None:
    ids = torch.randint(9, (2, 30))
    model = Words()
    assert choose_objective(model, [ids]).read(model(ids), 2).shape == (2, 4096, 30)
