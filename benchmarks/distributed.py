"""Claims: several processes give the saliencies of one, and each does its share of the work.

Pretrained ResNet-56 (ResNet-20 in a quick run), 512 lossless CIFAR-10 images in 16 batches of 32, one thread for each
process, gloo. Cores are few, so that the clock says little: efficiency is the processor time of one process over the
processor time of all `k`. What every process does by itself (finding groups, choosing among units) counts against it.
"""

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import hessprune as hp
from support.claims import Claims, arguments
from support.networks import images, pretrained

METHODS = ("hap(estimator=rademacher)", "hap", "taylor", "sosp-h", "sosp-i", "joint")
PROCESSES = (1, 2, 4)


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    depth, number = (20, 128) if options.quick else (56, 512)
    rows: list[dict[str, Any]] = []
    alone: dict[str, tuple[torch.Tensor, float]] = {}
    for count in PROCESSES[: 2 if options.quick else None]:
        with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            asked = (count, port, folder, depth, number, options.data_root)
            mp.spawn(work, asked, nprocs=count)  # type: ignore[attr-defined]
            found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(count)]
        for method in METHODS:
            values = [each[method]["values"] for each in found]
            seconds = [each[method]["processor_s"] for each in found]
            row = {"method": method, "processes": count, "processor_s": [round(each, 2) for each in seconds]}
            if count == 1:
                alone[method] = values[0], sum(seconds)
            apart = max(float((each - alone[method][0]).abs().max() / alone[method][0].abs().max()) for each in values)
            rows.append(row | {"efficiency": round(alone[method][1] / sum(seconds), 3), "apart": apart})
            print(rows[-1], flush=True)
            if count > 1:
                claims.at_most(f"{method}, {count} processes: largest relative difference", apart, 1e-6)
                share = rows[-1]["efficiency"]
                claims.at_least(f"{method}, {count} processes: work of one over work of all", share, 0.8)
    claims.write(options.out, rows=rows)


def work(rank: int, count: int, port: int, folder: str, depth: int, number: int, root: Path) -> None:
    """Score by every method as one of several processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    model, (x, y) = pretrained(depth, root), images(root, number)
    batches = [*zip(x.split(number // 16), y.split(number // 16), strict=True)]
    groups, found = hp.find_groups(model, x[:1]), {}
    for method in METHODS:
        started = time.process_time()
        values = hp.saliency(model, groups, batches, method)
        found[method] = {"values": torch.cat([*values.values()]), "processor_s": time.process_time() - started}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
