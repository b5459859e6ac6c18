"""Without floating-point numbers, integers are still what they are, and shapes are those of torch."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.integers import RealIntegers, inputs_with_integers, with_integers
from hessprune.foundation.modules import dry_run


class Asking(nn.Module):
    """Asks about its positions, and writes a mask by them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6)
        self.register_buffer("order", torch.arange(9).flip(0))
        self.runs = 0

    def forward(self, words: Tensor, scale: Tensor) -> Tensor:
        self.runs += 1
        places = torch.arange(words.shape[1], device=self.table.weight.device)
        hidden = self.table(words) * scale
        if bool((self.order[places] > 3).any()) and int(words.max()) > 0:
            hidden = hidden.masked_fill((places > 1)[None, :, None], 0.0)
            hidden = hidden[:, places[::2]]
        return hidden @ hidden.mT


def test_integers_answer_and_shapes_are_those_of_torch() -> None:
    model, words, scale = Asking(), torch.arange(14).view(2, 7), torch.ones(2, 7, 1)
    expected = model(words, scale)
    with RealIntegers(), torch.no_grad():
        empty = with_integers(model)
        found = empty(*inputs_with_integers((words, scale)))
        assert empty.order.device.type == "cpu"
    assert found.is_meta
    assert found.dtype == expected.dtype


def test_a_dry_run_takes_no_numbers_where_integers_suffice() -> None:
    seen: list[torch.device] = []

    def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        seen.append(next(model.parameters()).device)
        return tuple(model(*inputs)[:, :1, :1].shape)

    assert dry_run(Asking(), (torch.arange(14).view(2, 7), torch.ones(2, 7, 1)), run) == (2, 1, 1)
    assert [device.type for device in seen] == ["meta", "meta"]


def test_numbers_that_receive_others_without_are_refused() -> None:
    counts, absent = torch.zeros(3), torch.empty(3, device="meta")
    with RealIntegers(), pytest.raises(RuntimeError, match="receives"):
        counts.add_(absent)


def test_tables_without_numbers_stay_so() -> None:
    with RealIntegers():
        assert torch.tensor([1, 2], device="meta").is_meta  # torch writes nothing there
        assert torch.ones(3, device="meta").is_meta
        assert not torch.ones(3, dtype=torch.int64, device="meta").is_meta
