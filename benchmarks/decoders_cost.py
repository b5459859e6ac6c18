"""The whole prune of SmolLM2-135M block by block takes at most 40 processor minutes and 6 GB, and `generate` speeds up.

A Llama-shaped model of 30 blocks, read by transformers from `--model` (or a small one from a config, with random
weights and words, where none is given), texts of 512 words of the validation part of WikiText-2 as they come, 20 % of
the parameters of the blocks removed, `sequential=True`, one process. Seconds are processor time of all threads, 2 400
for 20 minutes on two cores; memory is the resident set of the process at most, the model included. Stages are those of
the progress bar. Words per second of `generate` are the median of five turns on one thread, the dense and the pruned
model in turns. n = `--texts`.
"""

import resource
import statistics
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hessprune as hp
from hessprune.foundation.progress import listening
from support.claims import Claims, arguments
from support.zoo import define_operators

WORDS, NEW = 512, 64
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 3000,
}


def main() -> None:
    options, claims = arguments(__doc__, more), Claims()
    model, texts = subject(options)
    example = {"input_ids": texts[:1]}
    batches = [{"input_ids": part} for part in texts.split(1)]
    stages, started, began = Stages(), time.process_time(), time.time()
    with listening(stages):
        result = hp.prune(model, example, batches, budget=block_budget(model, 0.8), sequential=options.folder or True)
    seconds, wall = time.process_time() - started, time.time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stages.print_table()
    speeds = generation(model, result.model, texts[:1, :16])
    row = {
        "texts": len(texts),
        "words": texts.shape[1],
        "processor_seconds": seconds,
        "wall_seconds": wall,
        "peak_bytes": peak,
        "stages": stages.seconds,
        "params": [result.cost_before.params, result.cost_after.params],
        "words_per_second": speeds,
        "removed": result.plan.num_removed,
    }
    print(row)
    claim(claims, row, real=options.model is not None)
    claims.write(options.out, rows=[row])


def claim(claims: Claims, row: dict[str, Any], *, real: bool) -> None:
    """Claim what a run shows; a small model, or fewer than 64 texts, leave the time open."""
    whole, seconds, speeds = real and row["texts"] >= 64, row["processor_seconds"], row["words_per_second"]
    name = f"processor seconds of the whole prune, {row['texts']} texts"
    claims.add(name, seconds, "<= 2400 for 64 texts", holds=seconds <= 2400 if whole else None)
    claims.at_most("peak memory, GB", row["peak_bytes"] / 1e9, 6)
    if real:
        claims.at_least("words per second of `generate`, pruned / dense", speeds[1] / speeds[0], 1.0)


def more(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="folder of a causal language model, or of its GGUF file")
    parser.add_argument("--text", type=Path, help="running text; wikitext2/valid.txt of --data-root if not given")
    parser.add_argument("--texts", type=int, default=64, help="texts of 512 words")
    parser.add_argument("--folder", type=Path, help="where finished blocks are kept")


def subject(options: Namespace) -> tuple[Any, Tensor]:
    """Return the model and its calibration texts, `(n, words)`."""
    define_operators()
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if options.model is None:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()
        return model, torch.randint(3, SMALL["vocab_size"], (12, 64))
    file = next((path.name for path in options.model.glob("*.gguf")), None)
    source = {} if file is None else {"gguf_file": file}
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model, **source)
    text = (options.text or options.data_root / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    words = torch.tensor(tokenizer(text[: 8 * WORDS * options.texts])["input_ids"])
    return model, words[: options.texts * WORDS].view(options.texts, WORDS)


def block_budget(model: Any, kept: float) -> hp.Budget:
    """Return the budget that keeps a share of the parameters of the blocks, and all others."""
    blocks = sum(value.numel() for name, value in model.named_parameters() if ".layers." in name)
    total = sum(value.numel() for value in model.parameters())
    return hp.Budget(params=int(kept * blocks) + total - blocks)


class Stages:
    """Adds up the processor time of each bar, and of what lies between bars."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []
        self._since = time.process_time()

    def start(self, label: str, total: int | None) -> int:
        """Open a bar."""
        if not self._open:
            self._add("between", time.process_time() - self._since)
        print(f"{time.process_time():8.1f} s  {label} {total or ''}", flush=True)
        self._open.append((label, time.process_time()))
        return len(self._open)

    def advance(self, handle: int, steps: int, note: str) -> None:
        """Print a note."""
        if note and steps and handle == 1:
            print(f"{time.process_time():8.1f} s  {note}", flush=True)

    def finish(self, handle: int) -> None:
        """Close a bar; one inside another counts for the outer one."""
        label, since = self._open.pop()
        if handle == 1:
            self._add(label, time.process_time() - since)
            self._since = time.process_time()

    def print_table(self) -> None:
        self._add("between", time.process_time() - self._since)
        for label, seconds in self.seconds.items():
            print(f"{seconds:8.1f} s  {label}")

    def _add(self, label: str, seconds: float) -> None:
        self.seconds[label] = self.seconds.get(label, 0.0) + seconds


def generation(dense: Any, pruned: Any, prompt: Tensor) -> list[float]:
    """Return the words per second of two models, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    turns: list[list[float]] = [[], []]
    for _ in range(5):
        for taken, model in zip(turns, (dense, pruned), strict=True):
            started = time.process_time()
            mask = torch.ones_like(prompt)
            words = model.generate(
                input_ids=prompt, attention_mask=mask, do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW
            )
            taken.append((words.shape[1] - prompt.shape[1]) / (time.process_time() - started))
    torch.set_num_threads(threads)
    return [statistics.median(taken) for taken in turns]


if __name__ == "__main__":
    main()
