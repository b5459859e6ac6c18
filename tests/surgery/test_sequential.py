"""Refitting block by block: the weights of a refit of the whole model, one block held, and runs that resume."""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.progress import listening
from hessprune.surgery import refitting, sequential
from hessprune.surgery.calibration import gather
from hessprune.surgery.refitting import refitted
from hessprune.surgery.sequential import refitted_by_block
from tests.test_language_models import block_budget, inputs_of, language_model

TEXTS = 20
DECODERS = ("GPT2", "Gemma2")


@cache
def pruned(name: str, layers: int = 2) -> tuple[nn.Module, hp.PruneResult, list[dict[str, torch.Tensor]]]:
    """Return a decoder, what a plan by magnitude leaves of it, and texts."""
    depth = "n_layer" if name == "GPT2" else "num_hidden_layers"
    model, batches = language_model(name, **{depth: layers}), [inputs_of(name, batch=TEXTS, length=12)]
    budget, example = block_budget(model, 0.6), inputs_of(name)
    return model, hp.prune(model, example, batches, budget=budget, method="magnitude", compensate=False), batches


@pytest.mark.parametrize("name", DECODERS)
def test_weights_are_those_of_a_refit_of_the_whole_model(name: str) -> None:
    model, result, batches = pruned(name)
    batches = [batches[0], inputs_of(name, batch=6, length=7)]  # of two lengths
    samples = gather(Rereadable.of(batches, model), result.model)
    whole = refitted(model, result.model, result.plan, samples)
    blocks = refitted_by_block(model, result.model, result.plan, samples)
    before = dict(result.model.named_parameters())
    moved = [n for n, value in blocks.named_parameters() if not torch.equal(value, before[n])]
    assert any("mlp" in n or "attn" in n for n in moved)
    inside = [n for n in before if ".layers." in n or ".h." in n]
    for n in inside:
        assert torch.allclose(whole.get_parameter(n), blocks.get_parameter(n), rtol=1e-8, atol=1e-9), n
    assert all(n in inside for n in moved)  # the head is the embedding, too, and stays, as in the refit of the whole
    if name == "GPT2":  # its head is its embedding, too: the refit of the whole model leaves it alone
        assert torch.equal(whole.get_parameter("transformer.wte.weight"), before["transformer.wte.weight"])


class KilledError(Exception):
    """Ends a run."""


def test_a_killed_run_continues_behind_the_last_finished_block(tmp_path: Path, monkeypatch) -> None:
    model, result, batches = pruned("Llama", 4)
    samples = gather(Rereadable.of(batches, model), result.model)
    expected = refitted_by_block(model, result.model, result.plan, samples)
    fit, fitted = sequential._fit, []

    def counted(teacher, stage, plan, ways, number):
        if len(fitted) == 2:
            raise KilledError
        fitted.append(number)
        return fit(teacher, stage, plan, ways, number)

    monkeypatch.setattr(sequential, "_fit", counted)
    with pytest.raises(KilledError):
        refitted_by_block(model, result.model, result.plan, samples, folder=tmp_path)
    monkeypatch.setattr(sequential, "_fit", lambda *args: fitted.append(args[-1]) or fit(*args))
    resumed = refitted_by_block(model, result.model, result.plan, samples, folder=tmp_path)
    assert fitted == [0, 1, 2, 3]
    for n, value in expected.named_parameters():
        assert torch.equal(value, resumed.get_parameter(n)), n


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("hessprune.surgery")]


def test_blocks_of_other_models_and_damaged_ones_are_fitted_anew(tmp_path: Path, monkeypatch, caplog) -> None:
    model, result, batches = pruned("Llama", 4)
    samples = gather(Rereadable.of(batches, model), result.model)
    refitted_by_block(model, result.model, result.plan, samples, folder=tmp_path)
    fit, fitted = sequential._fit, []
    monkeypatch.setattr(sequential, "_fit", lambda *args: fitted.append(args[-1]) or fit(*args))
    file = tmp_path / "block-002.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    refitted_by_block(model, result.model, result.plan, samples, folder=tmp_path)
    assert fitted == [2]
    (message,) = said(caplog)
    assert message == f"{file} is damaged, or of another program: it is made anew"
    caplog.clear()
    other = copy.deepcopy(result.model)
    with torch.no_grad():
        next(other.parameters())[0] += 1
    refitted_by_block(model, other, result.plan, samples, folder=tmp_path)
    assert fitted == [2, 0, 1, 2, 3]
    (message,) = said(caplog)
    assert re.fullmatch(r"\d files in .* are of another model, plan or data: they are made anew", message)
    bent = copy.deepcopy(model)
    for layer in bent.model.layers:
        layer.self_attn.scaling *= 2  # a number that the forward reads: weights and modules stay
    refitted_by_block(bent, other, result.plan, samples, folder=tmp_path)
    assert fitted == [2, *2 * [0, 1, 2, 3]]


def test_progress_names_the_block() -> None:
    model, result, batches = pruned("Llama", 4)
    notes: list[str] = []

    class Listener:
        def start(self, label: str, total: int | None) -> int:
            return 0

        def advance(self, handle: int, steps: int, note: str) -> None:
            notes.append(note)

        def finish(self, handle: int) -> None:
            pass

    with listening(Listener()):
        refitted_by_block(model, result.model, result.plan, gather(Rereadable.of(batches, model), result.model))
    said = [f"block {number}/4" for number in (1, 2, 3, 4)] + ["layer 1/1 outside of the blocks"]
    assert [note for note in notes if note][::2] == said


def test_dense_outputs_of_one_block_are_held_at_a_time(monkeypatch) -> None:
    """Count the positions that the teachers of a refit hold, whatever the process takes beside that."""
    model, result, batches = pruned("Llama", 4)
    samples = gather(Rereadable.of(batches, model), result.model)
    held: list[int] = []
    scene = refitting._scene

    def counted(*args):
        made = scene(*args)
        held.append(sum(part.output.numel() for uses in made.targets.values() for part in uses))
        return made

    monkeypatch.setattr(refitting, "_scene", counted)
    refitted_by_block(model, result.model, result.plan, samples)
    blocks, _ = [*held], held.clear()
    refitted(model, result.model, result.plan, samples)
    assert len(blocks) == 4
    assert max(blocks) <= sum(blocks) / 4 * 1.5 < held[0] / 2.5


def test_too_few_samples_and_losses_that_do_not_fall_leave_the_model(monkeypatch) -> None:
    model, result, batches = pruned("Llama", 4)
    few = [{"input_ids": batches[0]["input_ids"][:8]}]
    for data in (few, batches):
        monkeypatch.setattr(sequential, "mean_losses", lambda *_: [1.0, 1.0])
        same = sequential.compensate_by_block(model, result.model, result.plan, data)
        for n, value in result.model.named_parameters():
            assert torch.equal(value, same.get_parameter(n)), n
