"""Positions that do not count."""

import torch

from hessprune.foundation.texts import tokens_of
from hessprune.objectives.masks import counted_positions, sampled_positions

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_attention_masks_exclude_padding_over_all_further_axes() -> None:
    for inputs in ({"attention_mask": MASK}, {"key_padding_mask": MASK == 0}):
        assert torch.equal(counted_positions(inputs, None, (2, 3)), MASK.bool())
        whole = counted_positions(inputs, None, (2, 3, 4))
        assert torch.equal(whole, MASK.bool()[:, :, None].expand(2, 3, 4))


def test_masks_of_other_shapes_and_other_inputs_say_nothing() -> None:
    assert counted_positions({"attention_mask": MASK}, None, (2, 4)).all()
    assert counted_positions({"attention_mask": MASK}, None, (2,)).all()
    assert counted_positions((MASK,), None, (2, 3)).all()


def test_the_decoder_s_mask_comes_first() -> None:
    inputs = {"attention_mask": torch.ones(2, 3), "decoder_attention_mask": MASK}
    assert torch.equal(counted_positions(inputs, None, (2, 3)), MASK.bool())


def test_ignored_labels_exclude_their_positions() -> None:
    labels = torch.tensor([[0, -100, 2], [1, 1, -100]])
    assert torch.equal(counted_positions(None, labels, (2, 3)), labels >= 0)
    assert torch.equal(counted_positions(None, labels, (2, 3), ignore_index=1), labels != 1)
    assert counted_positions(None, labels.float(), (2, 3)).all()
    assert torch.equal(counted_positions({"attention_mask": MASK}, labels, (2, 3)), (labels >= 0) & MASK.bool())
    assert torch.equal(counted_positions(None, torch.tensor([[-100], [1]]), (2,)), torch.tensor([False, True]))


def test_sampled_positions_are_spread_and_the_same_for_a_length() -> None:
    chosen = sampled_positions(1000, 10)
    assert torch.equal(chosen, sampled_positions(1000, 10))
    assert [int(position) // 100 for position in chosen] == [*range(10)]
    assert torch.equal(sampled_positions(10, 10), sampled_positions(10, None))


def test_tokens_are_those_that_outputs_follow() -> None:
    ids, others = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    assert tokens_of({"input_ids": ids, "decoder_input_ids": others}) is others
    assert tokens_of({"mask": torch.ones(2, 5), "input_ids": ids}) is ids
    assert tokens_of((ids,)) is ids
    assert tokens_of({"input_features": torch.ones(2, 3, 4), "decoder_input_ids": others}) is others
    assert tokens_of(torch.ones(2, 5)) is None
