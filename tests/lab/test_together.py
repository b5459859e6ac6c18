"""Stages made by two processes: one folder, one set of results, whether the work is shared or not."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from hessprune.foundation.files import write_json
from hessprune.foundation.processes import num_processes, rank, summed
from hessprune.lab.store import StageStore
from hessprune.lab.together import one_writes, process_group, told
from tests.spawning import spawned


def work(number: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(number)}
    with process_group():
        assert told(lambda: number == 0)
        store = StageStore(Path(folder) / "stages")

        def make(own: Path) -> None:
            found = json.loads((own / "left.json").read_text("utf-8")) if (own / "left.json").exists() else None
            sum_of_ranks = float(summed(torch.tensor(float(number))))
            facts = {"rank": number, "processes": num_processes(), "sum": sum_of_ranks, "left": found}
            write_json(own / "facts.json", facts)

        shared, lonely = store.run("2-saliency-x", make), store.run("1-dense", make)
        again = store.run("2-saliency-x", make)
        seen: dict[str, Any] = {"reused": [shared.reused, lonely.reused, again.reused], "rank": rank()}
        seen |= {
            name: json.loads(s.file("facts.json").read_text("utf-8"))
            for name, s in (("shared", shared), ("lonely", lonely))
        }
        write_json(Path(folder) / f"{number}.json", seen)
    assert num_processes() == 1


def test_two_processes_make_stages_together(tmp_path) -> None:
    left = tmp_path / "stages" / "2-saliency-x"
    store = StageStore(tmp_path / "stages")
    try:
        store.run("2-saliency-x", lambda folder: 1 / write_json(folder / "left.json", "before the kill"))  # type: ignore[operator]
    except TypeError:  # interrupted
        assert (left / "left.json").exists()
    spawned(work, str(tmp_path))
    for number in range(2):
        seen = json.loads((tmp_path / f"{number}.json").read_text("utf-8"))
        assert seen["rank"] == number
        assert seen["reused"] == [False, False, True]
        assert seen["shared"] == {"rank": 0, "processes": 2, "sum": 1.0, "left": "before the kill"}
        assert seen["lonely"] == {"rank": 0, "processes": 1, "sum": 0.0, "left": None}


def test_one_process_works_in_the_folder_itself(tmp_path) -> None:
    with process_group(), one_writes(tmp_path, shared=False) as own:
        assert own == tmp_path
        assert told(lambda: True)
        assert not told(lambda: False)
