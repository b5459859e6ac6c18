"""Which positions are padding, in every form that masks have."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hessprune as hp
from hessprune.foundation.texts import are_words_last, has_decoder, position_mask, word_masks

KEPT = torch.tensor([[0, 1, 1], [1, 1, 0]])
LOOKED_AT = KEPT[:, None, None, :].bool().expand(2, 4, 3, 3) & torch.ones(3, 3).tril().bool()
MASKS = {
    "integers": KEPT,
    "bool": KEPT.bool(),
    "numbers": KEPT.double(),
    "added to scores": torch.zeros(2, 3).masked_fill(KEPT == 0, float("-inf")),
    "pairs of positions, bool": LOOKED_AT,
    "pairs, integers": LOOKED_AT[:, 0].long(),
    "pairs, one row": LOOKED_AT[:, :1].any(2, keepdim=True),
    "pairs, added": torch.zeros(2, 1, 3, 3).masked_fill(~LOOKED_AT[:, :1], torch.finfo(torch.float32).min),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_all_forms_say_the_same(name: str) -> None:
    found = position_mask({"attention_mask": MASKS[name]}, (2, 3))
    assert found is not None
    assert torch.equal(found, KEPT.bool())


@pytest.mark.parametrize("padding", [KEPT == 0, (KEPT == 0).long(), torch.zeros(2, 3).masked_fill(KEPT == 0, -1e9)])
def test_masks_of_padding_are_the_other_way_round(padding: Tensor) -> None:
    found = position_mask({"src_key_padding_mask": padding}, (2, 3))
    assert found is not None
    assert torch.equal(found, KEPT.bool())


def test_one_row_stands_for_all_and_other_shapes_say_nothing() -> None:
    one = position_mask({"attention_mask": KEPT[:1]}, (2, 3))
    assert one is not None
    assert one.tolist() == [[False, True, True]] * 2
    for mask in (KEPT[:, :2], KEPT[0], torch.ones(5, 3), "causal"):
        assert position_mask({"attention_mask": mask}, (2, 3)) is None
    assert position_mask((KEPT, KEPT), (2, 3)) is None
    unmasked = position_mask({"attention_mask": torch.zeros(2, 1, 3, 3)}, (2, 3))  # nothing is added
    assert unmasked is not None
    assert unmasked.all()
    flat = position_mask({"attention_mask": torch.zeros(2, 3)}, (2, 3))
    assert flat is not None
    assert flat.all(), "a batch without padding, beside others with it"


def test_beside_a_decoder_the_attention_mask_is_the_encoder_s() -> None:
    both: dict[str, Any] = {"attention_mask": KEPT, "decoder_input_ids": torch.ones(2, 3)}
    assert has_decoder(both)
    assert not has_decoder({**both, "decoder_input_ids": None})
    assert position_mask(both, (2, 3)) is None
    encoder = position_mask(both, (2, 3), encoder=True)
    assert encoder is not None
    assert torch.equal(encoder, KEPT.bool())


def test_words_or_their_embeddings_tell_the_axis_of_classes() -> None:
    logits = torch.zeros(2, 3, 3)
    assert are_words_last(logits, {"inputs_embeds": torch.zeros(2, 3, 8)})
    assert are_words_last(logits, torch.zeros(2, 3, dtype=torch.int32))
    for inputs in (torch.zeros(2, 3), torch.zeros(2, 3, 8), {"pixel_values": torch.zeros(2, 3, 3)}):
        assert not are_words_last(logits, inputs)


def test_word_masks_come_by_length_and_of_pairs_either_counts():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert word_masks(None, {"input_ids": mask, "attention_mask": mask}, 2)[3].equal(mask.bool())
    assert word_masks(None, torch.zeros(2, 3), 2) == {}
    pair = {"input_ids": mask, "attention_mask": mask, "decoder_input_ids": mask[:, :2]}
    own = torch.tensor([[1, 0], [1, 1]])
    found = word_masks(None, {**pair, "decoder_attention_mask": own}, 2)
    assert sorted(found) == [2, 3]
    assert found[2].equal(own.bool())
    one_length = {**pair, "decoder_input_ids": mask}
    assert word_masks(None, one_length, 2) == {}, "every position of the decoder counts"
    both = word_masks(None, {**one_length, "decoder_attention_mask": mask.flip(1)}, 2)
    assert both[3].equal(mask.bool() | mask.flip(1).bool())


def test_of_source_and_target_each_mask_speaks_of_its_own():
    source, target = torch.tensor([[0, 0, 1, 1]]).bool(), torch.tensor([[0, 1, 1]]).bool()
    inputs = {"src": torch.ones(1, 4).long(), "tgt": torch.ones(1, 3).long(), "src_key_padding_mask": source}
    assert word_masks(None, {**inputs, "tgt_key_padding_mask": target}, 1)[4].equal(~source)
    assert word_masks(None, {**inputs, "tgt_key_padding_mask": target}, 1)[3].equal(~target)
    one_length = {**inputs, "tgt": inputs["src"]}
    assert word_masks(None, one_length, 1) == {}, "every position of the target counts"
    either = word_masks(None, {**one_length, "tgt_key_padding_mask": source.flip(1) & source}, 1)
    assert either[4].equal(~(source.flip(1) & source))
    own = position_mask({**one_length, "tgt_key_padding_mask": source.flip(1)}, (1, 4))
    assert own is not None
    assert own.equal(~source.flip(1)), "outputs are the target's"
    assert position_mask(one_length, (1, 4)) is None


def test_beside_images_and_other_words_rows_may_not_be_those_of_the_text():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    text = {"input_ids": mask, "attention_mask": mask}
    for others in ({"patches": torch.zeros(2, 3, 8)}, {"pixel_values": torch.zeros(2, 3, 4, 4)}, {"context": mask}):
        assert word_masks(None, {**text, **others}, 2) == {}
    beside = {"token_type_ids": mask, "position_ids": mask, "labels": torch.zeros(2, 5), "context": mask[:, :2]}
    assert word_masks(None, {**text, **beside}, 2)[3].equal(mask.bool())
    numbers = {"x": torch.zeros(2, 3, 8), "key_padding_mask": mask == 0}
    assert word_masks(None, numbers, 2)[3].equal(mask.bool()), "nothing else gives rows"
    embedded = {"inputs_embeds": torch.zeros(2, 3, 8), "attention_mask": mask}
    assert word_masks(None, embedded, 2)[3].equal(mask.bool())


@pytest.mark.parametrize("number", [3, 100])
def test_tokens_in_lists_are_one_short_line_that_names_the_tokenizers_option(number: int) -> None:
    class Bigrams(torch.nn.Sequential):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(input_ids) * (1 if attention_mask is None else attention_mask.unsqueeze(-1))

    model = Bigrams(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 8), torch.nn.Linear(8, 9))
    ids = torch.ones(number, number, dtype=torch.int64)
    lists = ids.tolist()
    good, listed = {"input_ids": ids, "attention_mask": ids}, {"input_ids": lists, "attention_mask": lists}
    half = {"input_ids": ids, "attention_mask": lists}
    for example, batch in ((good, listed), (listed, good), (good, half)):
        with pytest.raises(hp.HessPruneError, match=r'return_tensors="pt"') as caught:
            hp.prune(model, example, [batch], budget=hp.Budget(params=0.9), method="hap", loss_fn="next_word")
        assert len(str(caught.value)) < 300
