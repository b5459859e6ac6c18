"""Blocks without fused attention, of several threads."""

import torch

from hessprune.layers.calls import slow_attention


def test_blocks_without_fused_attention_may_cross() -> None:
    first, second = slow_attention(), slow_attention()
    before = torch.backends.mha.get_fastpath_enabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled() == before
