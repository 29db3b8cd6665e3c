"""How much slower training steps are while a checkpoint is saved: in the background, in the foreground, and by torch.

    python benchmarks/background_saving.py [--saves 4]

Two workers (gloo, fp32, ZeRO 1, one thread each) train a Llama of 31M parameters, whose checkpoint with Adam's moments
takes 372 MB, on random bytes. The ways to save take turns, and each save is held against the steps without one just
before it. torch saves the same values by `torch.distributed.checkpoint.async_save`, with a process group of its own. A
step is counted as one during a save where any of it is: from the copying, which the training waits for, to the
manifest. A save in the foreground is counted with the step after it.

Prints a Markdown table of medians and each save's figure. CPU seconds are those of the first worker with all its
threads: what a save takes of a core, however loaded the machine is. Needs 1.2 GB of disk, and says how loaded it was:
other jobs slow the writing and the steps alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as multiprocessing
from deepspeed import comm

from raystage.config.schedule import parse
from raystage.data.tokens import TokenWindows, open_streams
from raystage.files.filesystem import open_folder
from raystage.growth.apply import grown_steps
from raystage.growth.rules import initial_map
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.storage.store import Store
from raystage.train import collectives, partitions
from raystage.train.engine import StageEngine
from raystage.train.entry import Entry, fill
from raystage.train.saving import Counts, Saver
from raystage.train.state.shards import fragments_of

WORKERS = 2
CALM_STEPS = 3
TEXT_BYTES = 2_000_000
KINDS = ("in the background", "in the foreground", "by torch's async_save")


class Clock:
    """Seconds that passed, and CPU seconds of this worker, since it was made."""

    def __init__(self) -> None:
        self._began = np.array(self._now())

    def read(self) -> np.ndarray:
        return np.array(self._now()) - self._began

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), time.process_time()


@dataclass(frozen=True)
class Measured:
    """One save. calm, during: a row of (seconds, CPU seconds) for each step before it, and for each during it.

    copying, saving: the seconds until the training may go on, and until the manifest is there.
    """

    kind: str
    calm: np.ndarray
    during: np.ndarray
    copying: float
    saving: float

    @property
    def slowdown(self) -> np.ndarray:
        """By how much more a step during the save takes than one before it, as fractions: of seconds, CPU seconds."""
        return self.during.mean(axis=0) / np.median(self.calm, axis=0) - 1


def make_stage(folder: Path) -> StagePlan:
    (folder / "text").mkdir()
    for number in range(10):
        (folder / "text" / f"{number}.txt").write_bytes(os.urandom(TEXT_BYTES // 20).hex().encode())
    schedule = {
        "name": "saving",
        "data": {"source": "text", "path": str(folder / "text"), "validation_fraction": 0.3},
        "model": {"num_layers": 9, "hidden_size": 512, "num_heads": 8, "ffn_size": 1536, "context_length": 128},
        "training": {"workers": WORKERS, "global_batch_tokens": 1024, "micro_batch_size": 4},
        "stages": [{"name": "only", "until": {"steps": 1000}}],
    }
    return make_plan(parse(schedule)).staged.stages[0]


class Trainer:
    """A stage's engine and where its training stands."""

    def __init__(self, stage: StagePlan) -> None:
        self.stage, self.progress = stage, Progress.at_start(stage)
        rules = initial_map(stage.shape)
        steps = grown_steps(rules, {})
        self.engine = StageEngine(stage, steps)
        fill(self.engine, Entry(rules, None, resumed=False), steps, stage.seed)
        self.reader = TokenWindows(
            open_streams(stage.data, stage.shape.vocab_size).train, stage.shape.context_length, 0
        )

    def step(self) -> np.ndarray:
        """One step, until all workers are through with it; returns its seconds and CPU seconds."""
        clock, length, done = Clock(), self.stage.shape.context_length, self.progress.steps
        count = self.stage.training.global_batch_tokens // length
        self.engine.train_step(self.engine.batches(self.reader, done * count, count, length), 1e-4, done)
        self.progress.steps += 1
        self.progress.position += self.stage.training.global_batch_tokens
        comm.barrier()
        return clock.read()

    @property
    def saved(self) -> tuple:
        """What a Saver asks for."""
        counts = Counts(partitions.get_steps(self.engine.deepspeed), self.engine.head_starts)
        return self.stage, partitions.partitions(self.engine.deepspeed), counts, lambda: self.progress


def beside_steps(kind: str, trainer: Trainer, begin: Callable[[], None], is_done: Callable[[], bool]) -> Measured:
    """A save that goes on while the training does. is_done: on the first worker, whose word counts."""
    calm = [trainer.step() for _ in range(CALM_STEPS)]
    clock = Clock()
    begin()
    copying = clock.read()
    during = [copying + trainer.step()]
    while not collectives.broadcast_object(is_done()):
        during.append(trainer.step())
    return Measured(kind, np.array(calm), np.array(during), copying[0], clock.read()[0])


def in_background(trainer: Trainer, saver: Saver, said: list) -> Measured:
    before = len(said)

    def is_done() -> bool:
        saver.tell()
        return len(said) > before

    found = beside_steps(KINDS[0], trainer, lambda: saver.begin(*trainer.saved), is_done)
    saver.wait()
    return found


def in_foreground(trainer: Trainer, saver: Saver, said: list) -> Measured:
    calm = [trainer.step() for _ in range(CALM_STEPS)]
    clock = Clock()
    saver.save(*trainer.saved)
    saving = clock.read()
    return Measured(KINDS[1], np.array(calm), np.array([saving + trainer.step()]), saving[0], saving[0])


class ByTorch:
    """Saves what the Saver does, as torch does. Each worker's values have names of their own, so all are written."""

    def __init__(self, folder: str) -> None:
        self._folder, self._saves = folder, 0
        self._group = torch.distributed.new_group(backend="gloo")

    def __call__(self, trainer: Trainer, saver: Saver, said: list) -> Measured:
        self._saves += 1
        place, saving = f"{self._folder}/torch-{self._saves}", []

        def begin() -> None:
            fragments = fragments_of(partitions.partitions(trainer.engine.deepspeed))
            values = {f"{trainer.engine.rank}.{number}": one.values for number, one in enumerate(fragments)}
            saving.append(dcp.async_save(values, checkpoint_id=place, process_group=self._group))

        found = beside_steps(KINDS[2], trainer, begin, lambda: saving[0].done())
        saving[0].result()
        comm.barrier()
        if trainer.engine.rank == 0:
            shutil.rmtree(place)
        return found


def measure(rank: int, folder: str, saves: int, stage: StagePlan) -> None:
    """What a worker does; the first one prints."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORKERS), "LOCAL_SIZE": str(WORKERS)}
    torch.set_num_threads(1)
    comm.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, init_method=f"file://{folder}/rendezvous",
                          rank=rank, world_size=WORKERS)  # fmt: skip
    trainer, said = Trainer(stage), []
    with Saver(Store(open_folder(f"{folder}/store")), "measured", lambda *what: said.append(what), True) as saver:
        for _ in range(2):
            trainer.step()
        kinds = (in_background, in_foreground, ByTorch(folder))
        for kind in kinds:  # their host memory is new, and so is what torch imports
            kind(trainer, saver, said)
        found = [kind(trainer, saver, said) for _ in range(saves) for kind in kinds]
    if rank == 0:
        print(table(found), flush=True)
    os._exit(0)  # Python's own teardown would destroy threads of gloo that DeepSpeed's groups still hold


def table(found: list[Measured]) -> str:
    lines = [
        "| save | step, s | during, s | slower by | CPU s | during, CPU s | more by | training waits, ms | of a step"
        " | done after, s | each save slower by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        row = [one for one in found if one.kind == kind]
        calm, during = np.concatenate([one.calm for one in row]), np.array([one.during.mean(axis=0) for one in row])
        slower = np.median([one.slowdown for one in row], axis=0)
        cells = [f"{_median(calm[:, unit])} | {_median(during[:, unit])} | {slower[unit]:.0%}" for unit in range(2)]
        waits = np.median([one.copying for one in row])
        waiting = f"{1000 * waits:.0f} | {waits / np.median(calm[:, 0]):.0%}"
        done = _median([one.saving for one in row])
        each = ", ".join(f"{one.slowdown[0]:.0%}" for one in row)
        lines.append(f"| {' | '.join((kind, *cells, waiting, done, each))} |")
    return "\n".join(lines)


def _median(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--saves", type=int, default=4, help="of each kind")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        stage = make_stage(Path(place))
        print(f"{stage.num_params / 1e6:.0f}M parameters; load average {os.getloadavg()[0]:.1f}", flush=True)
        multiprocessing.spawn(measure, args=(place, asked.saves, stage), nprocs=WORKERS)
        print(f"load average {os.getloadavg()[0]:.1f} at the end, of which {WORKERS} are the workers", flush=True)


if __name__ == "__main__":
    main()
