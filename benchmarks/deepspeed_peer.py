"""A checkpoint's way into another number of workers: raystage's, against DeepSpeed's own by its universal format.

    python benchmarks/deepspeed_peer.py [--params 10M|100M] [--workers 2] [--into 3] [--repeats 3] [--timeout 600]

One model in fp32 under ZeRO 1 (DeepSpeed's way cannot cross to ZeRO 3), trained for one real step, so that Adam's
moments are there. The same engine then saves it both ways, and engines of another number of workers load it both ways:

    DeepSpeed   save_checkpoint, ds_to_universal, load_checkpoint with load_universal
    raystage    shards and a manifest, and the next engine's partitions filled from them

Both bring what they save to the disk; what `ds_to_universal` writes need not get there. What is read lies in the page
cache. Building engines counts for neither. Afterwards every worker's partitions must hold the same bits both ways.
Prints a Markdown table; needs Linux and 6 GB of disk at 100M.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}

import deepspeed
import numpy as np
import torch
import torch.multiprocessing as multiprocessing
import xxhash
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from raystage.config.schedule import parse
from raystage.files.filesystem import open_folder
from raystage.growth.apply import grown_steps
from raystage.growth.rules import growth_map, initial_map
from raystage.models.shape import num_params
from raystage.objectives.learner import HeldOut
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.shards.writing import placed
from raystage.train import collectives, partitions
from raystage.train.engine import StageEngine
from raystage.train.entry import Entry, fill
from raystage.train.state.shards import make_manifest, write_own_shard

MODELS = {
    "10M": {"num_layers": 6, "hidden_size": 320, "num_heads": 5, "ffn_size": 864, "vocab_size": 4096},
    "100M": {"num_layers": 12, "hidden_size": 768, "num_heads": 12, "ffn_size": 2048, "vocab_size": 16000},
}
CONTEXT = 16
NATIVE, UNIVERSAL, OURS = "deepspeed", "universal", "raystage"


class TooLong(Exception):
    """A part took longer than it may. seconds: how long it may take."""

    def __init__(self, part: str, seconds: float) -> None:
        super().__init__(f"{part} was ended after {seconds:.0f} s")
        self.part, self.seconds = part, seconds


# --- workers ----------------------------------------------------------------------------------


def run_workers(part: str, world: int, limit: float, work: Callable, *arguments: Any, folder: Path) -> list[dict]:
    """`work(*arguments)` on each of `world` processes joined by gloo; what they returned. Raises TooLong."""
    place = tempfile.mkdtemp(dir=folder)
    spawned = multiprocessing.spawn(_enter, args=(world, place, work, arguments), nprocs=world, join=False)
    end = time.monotonic() + limit
    while not spawned.join(timeout=1):
        if time.monotonic() > end:
            for process in spawned.processes:
                process.kill()
            raise TooLong(part, limit)
    return [torch.load(f"{place}/{rank}.pt") for rank in range(world)]


def _enter(rank: int, world: int, place: str, work: Callable, arguments: tuple) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/group", rank=rank, world_size=world)
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    torch.save(work(*arguments), f"{place}/{rank}.pt")
    comm.barrier()
    # Python's own teardown would destroy threads of gloo that DeepSpeed's groups still hold: now and then an abort.
    sys.stdout.flush()
    os._exit(0)


def timed(action: Callable[[], Any]) -> float:
    """The seconds from when all workers are ready to when the last one is done."""
    comm.barrier()
    began = time.monotonic()
    action()
    comm.barrier()
    return time.monotonic() - began


def train_and_save(stage: StagePlan, place: str) -> dict[str, float]:
    """One real step from drawn weights; then the seconds of saving it both ways."""
    engine = _engine(stage, Entry(initial_map(stage.shape), None, resumed=False))
    count = stage.training.global_batch_tokens // CONTEXT
    drawn = np.random.default_rng(0).integers(0, stage.shape.vocab_size, (count, CONTEXT + 1), dtype=np.int64)
    engine.train_step(engine.batches(HeldOut({"tokens": drawn}), 0, count, CONTEXT), 1e-3, 0)
    return {
        NATIVE: timed(lambda: _save_native(engine, f"{place}/{NATIVE}")),
        OURS: timed(lambda: _save_ours(engine, stage, f"{place}/{OURS}")),
    }


def load_native(stage: StagePlan, place: str) -> dict[str, Any]:
    """The seconds of loading the universal checkpoint, and what was loaded."""
    options = {**stage.training.deepspeed, "checkpoint": {"load_universal": True}}
    stage = replace(stage, training=stage.training.model_copy(update={"deepspeed": options}))
    engine = _engine(stage, Entry(initial_map(stage.shape), None, resumed=False))
    seconds = timed(lambda: engine.deepspeed.load_checkpoint(place, tag=UNIVERSAL))
    return {"seconds": seconds, "digests": _digests(engine)}


def load_ours(stage: StagePlan, place: str) -> dict[str, Any]:
    """The same for raystage's."""
    engine = StageEngine(stage, dict.fromkeys((rule.target for rule in initial_map(stage.shape)), 1))

    def load() -> None:
        rules, source = growth_map(stage.shape, stage.shape, "identity", "grow"), Checkpoint(open_folder(place) / OURS)
        fill(engine, Entry(rules, source, resumed=False), grown_steps(rules, source.steps), stage.seed)

    return {"seconds": timed(load), "digests": _digests(engine)}


def _engine(stage: StagePlan, entry: Entry) -> StageEngine:
    steps = grown_steps(entry.rules, {})
    engine = StageEngine(stage, steps)
    fill(engine, entry, steps, stage.seed)
    return engine


def _save_native(engine: StageEngine, path: str) -> None:
    engine.deepspeed.save_checkpoint(path, tag="only")
    mine = [
        file for number, file in enumerate(sorted(Path(path, "only").iterdir())) if number % engine.world == engine.rank
    ]
    subprocess.run(["sync", *mine], check=True)


def _save_ours(engine: StageEngine, stage: StagePlan, path: str) -> None:
    folder = open_folder(path)
    shard, steps = write_own_shard(engine, folder)
    shards, known = collectives.all_gather_objects(shard), collectives.all_gather_objects(steps)
    if engine.rank == 0:
        merged = {name: step for one in known for name, step in one.items()}
        checkpoint.commit(folder, make_manifest(stage, placed(shards), merged, Progress.at_start(stage)))


def _digests(engine: StageEngine) -> dict[str, str]:
    """Checksums of all that this worker's optimizer holds."""
    return {
        f"{part.parameter}:{state}:{part.start}": xxhash.xxh3_128_hexdigest(values.numpy().tobytes())
        for part in partitions.partitions(engine.deepspeed)
        for state, values in part.tensors.items()
    }


# --- the comparison ---------------------------------------------------------------------------


def convert(place: Path, limit: float) -> float:
    """The seconds of DeepSpeed's converter, as it comes. Raises TooLong."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", f"{place}/{NATIVE}/only", "--output_folder", f"{place}/{UNIVERSAL}"]
    with open(place / "convert.log", "w") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise TooLong("ds_to_universal", limit) from None
        seconds = time.monotonic() - began
    if code:
        raise SystemExit((place / "convert.log").read_text())
    return seconds


@dataclass(frozen=True)
class Measured:
    """Seconds of one repeat. is_over: DeepSpeed was ended, and would have taken longer than these."""

    save: tuple[float, float]
    convert: float
    load: tuple[float, float]
    is_over: bool = False

    @property
    def ratio(self) -> float:
        (theirs, ours), (theirs_loading, ours_loading) = self.save, self.load
        return (theirs + self.convert + theirs_loading) / (ours + ours_loading)


def measure(stages: tuple[StagePlan, StagePlan], limit: float, folder: Path | None) -> Measured:
    """One repeat. Raises TooLong where it is not DeepSpeed's conversion or loading that takes so long."""
    before, after = stages
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        saved = run_workers(
            "training and saving", before.training.workers.most, limit, train_and_save, before, name, folder=place
        )[0]
        ours = run_workers("loading", after.training.workers.most, limit, load_ours, after, name, folder=place)
        save, loading = (saved[NATIVE], saved[OURS]), ours[0]["seconds"]
        try:
            converting = convert(place, limit)
        except TooLong as error:
            return Measured(save, error.seconds, (0.0, loading), is_over=True)
        theirs = run_workers("loading", after.training.workers.most, limit, load_native, after, name, folder=place)
        if [one["digests"] for one in theirs] != [one["digests"] for one in ours]:
            raise SystemExit("the two ways did not load the same bits")
        return Measured(save, converting, (theirs[0]["seconds"], loading))


def stage_of(params: str, workers: int, folder: Path) -> StagePlan:
    """One step of the smallest batch that each worker has a part of."""
    folder.mkdir(exist_ok=True)
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"document {number}\n" * 40)
    schedule = parse(
        {
            "name": "peer",
            "data": {"source": "text", "path": str(folder), "validation_fraction": 0.5},
            "model": {**MODELS[params], "context_length": CONTEXT},
            "training": {"workers": workers, "zero_stage": 1, "global_batch_tokens": 12 * CONTEXT},
            "stages": [{"name": "only", "until": {"steps": 2}}],
        }
    )
    return make_plan(schedule).staged.stages[0]


def table(repeats: list[Measured]) -> str:
    lines = ["| what | DeepSpeed, s | raystage, s |", "|---|---|---|"]
    rows = {
        "save": [one.save for one in repeats],
        "convert to universal": [(one.convert, 0.0) for one in repeats],
        "load": [one.load for one in repeats],
    }
    over = any(one.is_over for one in repeats)
    for what, pairs in rows.items():
        theirs, ours = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
        lines.append(f"| {what} | {'> ' * (over and what != 'save')}{theirs:.2f} | {f'{ours:.2f}' if ours else '-'} |")
    each = ", ".join(f"{'> ' * one.is_over}{one.ratio:.1f}" for one in repeats)
    ratio = statistics.median(one.ratio for one in repeats)
    lines.append(f"| ratio, median | {'> ' * over}{ratio:.1f} | each repeat: {each} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--params", choices=MODELS, default="100M")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--into", type=int, default=3, help="number of workers that load")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each part")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        stages = tuple(stage_of(asked.params, workers, Path(text)) for workers in (asked.workers, asked.into))
        size = num_params(stages[0].shape)
        print(
            f"{size / 1e6:.0f}M parameters, {12 * size / 1e9:.2f} GB of state; {asked.workers} workers into "
            f"{asked.into}, ZeRO 1, fp32; load average {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        repeats = [measure(stages, asked.timeout, asked.folder) for _ in range(asked.repeats)]
    print(table(repeats), flush=True)


if __name__ == "__main__":
    main()
