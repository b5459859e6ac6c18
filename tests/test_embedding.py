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
    return nn.Sequential(
        nn.Linear(7, 24), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(24, 5)
    )


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
    "ViT of timm": Case(of_timm("vision_transformer", "VisionTransformer", **BLOCKS), pictures),
}
MANY = {
    "Llama": Case(llama, sentences),
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


def trained(model: nn.Module, inputs: Any, labels: Tensor, epochs: int, rate: float) -> nn.Module:
    """Train on all samples but the last half."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels) // 2).split(64):
            optimizer.zero_grad()
            output = call_model(model.train(), taken(inputs, rows))
            nn.functional.cross_entropy(getattr(output, "logits", output), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def taken(inputs: Any, rows: Tensor) -> Any:
    return {name: value[rows] for name, value in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def seen_patterns() -> tuple[nn.Module, Any, Tensor]:
    """A ViT that tells ten noisy patterns apart."""
    labels = torch.randint(10, (4096,))
    images = torch.randn(10, 3, 16, 16)[labels] * torch.rand(4096, 1, 1, 1) + torch.randn(4096, 3, 16, 16)
    sizes = {**BLOCKS, "img_size": 16, "patch_size": 4, "depth": 3, "num_classes": 10}
    model = of_timm("vision_transformer", "VisionTransformer", **sizes)()
    return trained(model, images, labels, 4, 3e-3), images, labels


def read_balances() -> tuple[nn.Module, Any, Tensor]:
    """A BERT that weighs the words and the pairs of words of a sentence."""
    lengths = torch.randint(8, 25, (5000, 1))
    mask = (torch.arange(24) < lengths).long()
    ids = torch.randint(4, 44, (5000, 24)) * mask
    words = 2 * ((ids % 5 == 0).long() - (ids % 5 == 1).long()) + (ids % 7 == 0).long() - (ids % 7 == 1).long()
    left, right, is_word = ids[:, :-1] % 4, ids[:, 1:] % 4, mask[:, 1:]
    pairs = (((left == 0) & (right == 1)).long() - ((left == 1) & (right == 0)).long()) * is_word
    labels = (((words * mask).sum(1) + 3 * pairs.sum(1)) > 0).long()
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    package("transformers")
    name, settings = "BertForSequenceClassification", {**sizes, "vocab_size": 44, "max_position_embeddings": 40}
    transformers = importlib.import_module("transformers")
    model = getattr(transformers, name)(
        transformers.BertConfig(**settings, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )
    inputs = {"input_ids": ids, "attention_mask": mask}
    return trained(model, inputs, labels, 6, 2e-3), inputs, labels


@pytest.mark.slow
@pytest.mark.parametrize("task", [seen_patterns, read_balances], ids=["ViT", "BERT"])
def test_three_quarters_of_the_width_after_compensation(task: Callable[[], Any], tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, inputs, labels = task()
    example, first = taken(inputs, torch.arange(2)), torch.arange(256)
    batches = [(taken(inputs, first), labels[first])]

    def accuracy(found: nn.Module) -> float:
        rows = torch.arange(len(labels) // 2, len(labels))
        with torch.no_grad():
            output = call_model(found, taken(inputs, rows))
        return float((getattr(output, "logits", output).argmax(1) == labels[rows]).double().mean())

    def pruned(kept: float, method: str, *, compensate: bool) -> hp.PruneResult:
        budget, ranking = hp.Budget(units=kept), hp.Ranking(units=("embedding",))
        return hp.prune(
            model, example, batches, budget=budget, method=method, compensate=compensate, ranking=ranking
        )  # fmt: skip

    for kept, gain in ((0.5, 0.02), (0.75, 0.0)):
        ours, plain = pruned(kept, "joint", compensate=True), pruned(kept, "magnitude", compensate=False)
        assert {group.kind for group in ours.plan.groups if ours.plan.removed[group.name]} == {"embedding"}
        assert accuracy(ours.model) > accuracy(plain.model) + gain
        assert accuracy(ours.model) > accuracy(model) - 0.03
    path = hp.export_onnx(ours.model, example, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    values = example.values() if isinstance(example, dict) else [example]
    fed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), values, strict=True)}
    with torch.no_grad():
        output = call_model(ours.model, example)
    assert difference(getattr(output, "logits", output), torch.from_numpy(session.run(None, fed)[0])) < 1e-4
