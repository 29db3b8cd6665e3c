"""A few local processes with a gloo process group: what a Train run gives its workers, without Ray."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

# Imported once, by the server that all workers are forked from: each of them would take seconds to do it itself.
# Of the families' own modules only the most common is: how the others are imported in a worker is tested, too.
multiprocessing.set_forkserver_preload(
    ["deepspeed", "transformers.models.llama.modeling_llama", "raystage.train.worker"]
)


def run_workers(
    world: int, work: Callable[..., Any], *arguments: Any, folder: Path, start: str = "forkserver"
) -> list[Any]:
    """`work(*arguments)` on each of `world` processes; what each of them returned, by rank. start: "afresh" for those
    whose memory is measured: from a new process, of the environment as it is now, which imports once for all."""
    folder.mkdir(parents=True, exist_ok=True)
    if start == "afresh":
        options = {"folder": folder, "start": "fork"}
        parent = multiprocessing.get_context("spawn").Process(
            target=run_workers, args=(world, work, *arguments), kwargs=options
        )
        parent.start()
        parent.join()
        assert parent.exitcode == 0
        return _results(folder, world)
    rendezvous = folder / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    arguments = (world, str(folder), work, arguments)
    multiprocessing.start_processes(_enter, args=arguments, nprocs=world, start_method=start)
    return _results(folder, world)


def _results(folder: Path, world: int) -> list[Any]:
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(world)]


def _enter(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    torch.set_num_threads(1)
    gc.freeze()  # a worker collects garbage at the end of each stage: the million objects of its imports are none
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        torch.save(work(*arguments), f"{folder}/result-{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
    # Python's own teardown would destroy threads of gloo that DeepSpeed's groups still hold: now and then an abort.
    sys.stdout.flush()
    os._exit(0)
