"""Kill runs with SIGKILL: a process that has imported everything forks one run after the other, and ends some.

Run by `test_kills.py`, in a process of its own: python tests/killing.py FOLDER KILLS [all]. Writes one JSON line. With
`all`, every file of every stage loses a bit, else one file of each.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from hessprune.foundation.files import read_json
from hessprune.foundation.hashing import file_sha256
from hessprune.foundation.quiet import quiet
from hessprune.lab.recipe import parse_recipe
from hessprune.lab.run import run as run_recipe
from hessprune.lab.store import StageStore

RECIPE = {
    "threads": 1,
    "data": {"validation_size": 60, "calibration_size": 64, "batch_size": 128},
    "model": {"pretrain": {"epochs": 1, "lr": 0.1, "checkpoint_every_steps": 2}},
    "prune": {"method": "hap", "budget": {"macs": 0.5}},
    "finetune": {"epochs": 1, "lr": 0.05, "checkpoint_every_steps": 2},
    "quantize": {"train": {"epochs": 1, "checkpoint_every_steps": 2}},
    "report": {"curve": [], "baselines": False, "latency_repeats": 2},
}
STAGES = ("1-dense", "4-pruned-hap", "5-finetuned-hap", "8-int8", "9-onnx-finetuned")
OUTCOMES = (
    "1-dense/model.safetensors",
    "3-plan-hap/plan.json",
    "5-finetuned-hap/model.safetensors",
    "8-int8/int8.onnx",
)


def forked(out: Path, stage: str = "", delay: float = 0.0) -> bool:
    """Run the recipe in a child; kill it `delay` seconds after a stage began. True if it came to its end."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _announce(write)
        try:
            with quiet():
                run_recipe(parse_recipe(RECIPE), out)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        for line in lines:
            if stage and line.strip() == stage:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
                break
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the run failed in {out}")
    return os.WIFEXITED(status)


def _announce(pipe: int) -> None:
    """Let this process say which stages it begins to make."""
    run = StageStore.run

    def announced(self: StageStore, name: str, make, *inputs, **options):
        def making(folder: Path) -> None:
            os.write(pipe, f"{name}\n".encode())
            make(folder)

        return run(self, name, making, *inputs, **options)

    StageStore.run = announced


def outcome(out: Path) -> dict[str, str]:
    """Return what a run ended with: digests of its models and plan, and the accuracies."""
    report = read_json(out / "report.json")
    found = {name: file_sha256(next((out / "stages").glob(name))) for name in OUTCOMES}
    return found | {name: str(report[name]["accuracy"]) for name in ("dense", "pruned", "finetuned", "int8")}


def unmake(out: Path, stage: str) -> None:
    """Forget one stage of a whole run, and its report."""
    shutil.rmtree(out / "stages" / stage)
    (out / "report.json").unlink()


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def made_again(out: Path, stage: str) -> bool:
    """Run once more, and return whether a stage was made."""
    marker = out / "stages" / stage / "stage.json"
    before = marker.stat().st_mtime_ns
    assert forked(out)
    return marker.stat().st_mtime_ns != before


def main(folder: Path, kills: int, every_file: bool) -> None:
    whole = folder / "whole"
    assert forked(whole)
    expected, draw = outcome(whole), random.Random(0)
    seconds = {stage: read_json(whole / "stages" / stage / "stage.json")["seconds"] for stage in STAGES}
    killed, same = {}, {}
    for stage in STAGES:
        out = folder / stage
        shutil.copytree(whole, out)
        unmake(out, stage)
        killed[stage], ends = 0, []
        while killed[stage] < kills:
            if forked(out, stage, draw.random() * seconds[stage]):  # it was faster; once more from the start
                ends.append(outcome(out))
                unmake(out, stage)
            else:
                killed[stage] += 1
        assert forked(out)
        same[stage] = all(end == expected for end in [*ends, outcome(out)])
    files = sorted(path for path in (whole / "stages").rglob("*") if path.is_file() and path.name != "stage.json")
    if not every_file:
        files = [next(path for path in files if stage in path.parts) for stage in STAGES]
    noticed = {}
    for path in files:
        flip(path)
        name = path.relative_to(whole / "stages").as_posix()
        noticed[name] = made_again(whole, name.split("/")[0]) and outcome(whole) == expected
    print(json.dumps({"killed": killed, "same": same, "noticed": noticed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), every_file=sys.argv[3:] == ["all"])
