"""Embedding widths: slicing equals a mask in which every norm normalises the channels that stay, written down anew."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.modules import call_model
from hessprune.structure.groups import Group
from hessprune.structure.outputs import difference
from tests.huggingface import config, package, tokens
from tests.networks.check import masked
from tests.test_transformer_families import BLOCKS, GPT, SMALL, TOKENS, lively

UNITS = ("embedding", "heads", "neurons", "channels")


def over_kept(model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return the masked model, with norms over the kept channels of the last axis by their formulas."""
    copied = masked(model, groups, removed)
    for group in groups:
        for piece in group.slices if group.kind == "embedding" else ():
            module = copied.get_submodule(piece.param.rpartition(".")[0])
            if "Norm" in type(module).__name__ and piece.param.endswith("weight"):
                gone = {place for unit in removed[group.name] for place in piece.index[unit]}
                kept = torch.tensor([place for place in range(module.weight.numel()) if place not in gone])
                module.register_forward_hook(_formula(kept, axis=1 if type(module).__name__ == "LayerNorm2d" else -1))
    return copied


def _formula(kept: Tensor, axis: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        is_rms = "RMS" in type(module).__name__
        x = inputs[0].movedim(axis, -1)[..., kept]
        centred = x if is_rms else x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight[kept]
        normed = normed if is_rms else normed + module.bias[kept]
        whole = torch.zeros_like(output.movedim(axis, -1))
        whole[..., kept] = normed
        return whole.movedim(-1, axis)

    return hook


class RMSNorm(nn.Module):
    """The norm of Llama without its detour through float32."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.weight, self.eps = other.weight, other.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


@dataclass(frozen=True)
class Case:
    """A model, inputs, and the sizes of its embeddings."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    widths: tuple[int, ...] = (48,)


def sequences(batch: int) -> Tensor:
    return torch.randn(batch, 6, 7, dtype=torch.float64)


def pictures(batch: int) -> Tensor:
    return torch.randn(batch, 3, 32, 32, dtype=torch.float64)


def sentences(batch: int) -> dict[str, Tensor]:
    return tokens(batch + 4, batch)


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True, **options)
    return nn.Sequential(nn.Linear(7, 24), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(24, 5))


def of_transformers(auto: str, name: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = package("transformers")
        return getattr(transformers, auto).from_config(getattr(transformers, f"{name}Config")(**settings))

    return make


def of_timm(module: str, name: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        package("timm")
        return getattr(importlib.import_module(f"timm.models.{module}"), name)(**settings)

    return make


def bert(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(package("transformers"), name)(config(**settings))


def llama() -> nn.Module:
    model = of_transformers("AutoModelForCausalLM", "Llama", **SMALL, **TOKENS, num_key_value_heads=2)()
    for name, module in [*model.named_modules()]:
        if type(module).__name__ == "LlamaRMSNorm":
            model.set_submodule(name, RMSNorm(module))
    return model


WINDOWS = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
QUICK = {
    "encoder": Case(encoder, sequences, (24,)),
    "BERT, tied": Case(bert("BertForMaskedLM", tie_word_embeddings=True), sentences, (16,)),
    "Llama": Case(llama, sentences),
    "ViT of timm": Case(of_timm("vision_transformer", "VisionTransformer", **BLOCKS), pictures),
}
MANY = {
    "encoder, norm first": Case(lambda: encoder(norm_first=True), sequences, (24,)),
    "BERT": Case(bert("BertForSequenceClassification"), sentences, (16,)),
    "GPT-2": Case(of_transformers("AutoModelForCausalLM", "GPT2", **GPT), sentences),
    "ELECTRA": Case(
        of_transformers("AutoModelForSequenceClassification", "Electra", **SMALL, **TOKENS), sentences, (128, 48)
    ),
    "ViT of transformers": Case(
        of_transformers("AutoModelForImageClassification", "ViT", **SMALL, image_size=32, patch_size=8), pictures
    ),
    "BEiT of timm": Case(of_timm("beit", "Beit", **BLOCKS, use_rel_pos_bias=True, init_values=0.1), pictures),
    "EVA of timm": Case(
        of_timm("eva", "Eva", **BLOCKS, use_rot_pos_emb=True, ref_feat_shape=(4, 4)), pictures
    ),
    "CaiT of timm": Case(
        of_timm("cait", "Cait", **{**BLOCKS, "depth_token_only": 1}, init_values=0.1), pictures
    ),
    "Swin of timm": Case(of_timm("swin_transformer", "SwinTransformer", **WINDOWS), pictures, (24, 48)),
    "ConvNeXt of timm": Case(
        of_timm("convnext", "ConvNeXt", depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), num_classes=5),
        pictures,
        (8, 16, 16, 24),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [*QUICK.values(), *(pytest.param(case, marks=pytest.mark.slow) for case in MANY.values())],
    ids=[*QUICK, *MANY],
)  # fmt: skip
def test_embeddings_are_sliced_as_they_are_masked(case: Case) -> None:
    torch.manual_seed(0)
    model, inputs = lively(case.make()), case.inputs(2)
    groups = hp.find_groups(model, inputs, units=UNITS, compare=True)
    assert sorted(group.num_units for group in groups if group.kind == "embedding") == sorted(case.widths)
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    ranking = hp.Ranking(units=UNITS, per_cost=False)
    plan = hp.make_plan(model, groups, saliency, hp.Budget(units=0.6), example_inputs=inputs, ranking=ranking)
    assert all(plan.removed[group.name] for group in groups if group.kind == "embedding")
    pruned, expected = hp.apply_plan(model, plan, example_inputs=inputs), over_kept(model, groups, plan.removed)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernels call no module
    for each in (inputs, case.inputs(3)):
        with torch.no_grad():
            assert difference(call_model(expected, each), call_model(pruned, each)) < 1e-10
    torch.backends.mha.set_fastpath_enabled(fast)
    assert hp.cost(pruned, inputs) == plan.cost_after
