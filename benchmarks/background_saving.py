"""How much slower training steps are while a checkpoint is saved, in the background and in the foreground.

    python benchmarks/background_saving.py [--saves 4]

Two workers (gloo, fp32, ZeRO 1, one thread each) train a Llama of 31M parameters, whose checkpoint with Adam's moments
takes 372 MB, on random bytes. Saves in the background and in the foreground take turns, and each is held against the
steps without one just before it. A step is counted as one during a save where any of it is: from the copying, which
the training waits for, to the manifest. A save in the foreground is counted with the step after it.

Prints a Markdown table of medians, the seconds that a save adds to the training in all, and each save's figures. Needs
1.2 GB of disk, and says how loaded the machine was: other jobs slow the writing and the steps alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
import torch.multiprocessing as multiprocessing
from deepspeed import comm

from raystage import handover, zero
from raystage.data import Reader, open_streams
from raystage.engine import StageEngine
from raystage.growth.apply import grown_steps
from raystage.growth.maps import initial_map
from raystage.plan import StagePlan, make_plan
from raystage.record import Progress
from raystage.saving import Saver
from raystage.schedule import parse
from raystage.storage import open_folder
from raystage.store import Store

WORKERS = 2
CALM_STEPS = 3
TEXT_BYTES = 2_000_000
KINDS = ("in the background", "in the foreground")


@dataclass(frozen=True)
class Measured:
    """One save: the seconds of the steps before it, of those during it, of its copying, and of all until it is done."""

    kind: str
    calm: list[float]
    during: list[float]
    copying: float
    saving: float

    @property
    def slowdown(self) -> float:
        """By how much a step during the save is slower than one before it, as a fraction."""
        return statistics.mean(self.during) / statistics.median(self.calm) - 1

    @property
    def added_seconds(self) -> float:
        return sum(self.during) - len(self.during) * statistics.median(self.calm)


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
        handover.fill(self.engine, handover.Entry(rules, None, resumed=False), steps, stage.seed)
        self.reader = Reader(open_streams(stage.data, stage.shape.vocab_size).train, stage.shape.context_length, 0)

    def step(self) -> float:
        """One step; returns its seconds, the slowest worker's included."""
        began, count = time.monotonic(), self.stage.training.global_batch_tokens // self.stage.shape.context_length
        self.engine.train_step(self.reader.sequences(self.progress.steps * count, count), 1e-4, self.progress.steps)
        self.progress.steps += 1
        self.progress.tokens += self.stage.training.global_batch_tokens
        comm.barrier()
        return time.monotonic() - began

    @property
    def saved(self) -> tuple:
        """What a Saver asks for."""
        engine = self.engine.deepspeed
        return self.stage, zero.partitions(engine), zero.get_steps(engine), lambda: self.progress


def in_background(trainer: Trainer, saver: Saver, said: list) -> Measured:
    calm = [trainer.step() for _ in range(CALM_STEPS)]
    began, before = time.monotonic(), len(said)
    saver.begin(*trainer.saved)
    copying = time.monotonic() - began
    during = [copying + trainer.step()]
    while not handover.shared(_is_done(saver, said, before)):
        during.append(trainer.step())
    saving = time.monotonic() - began
    saver.wait()
    return Measured(KINDS[0], calm, during, copying, saving)


def _is_done(saver: Saver, said: list, before: int) -> bool:
    """On the first worker, whose word counts."""
    saver.tell()
    return len(said) > before


def in_foreground(trainer: Trainer, saver: Saver, said: list) -> Measured:
    calm = [trainer.step() for _ in range(CALM_STEPS)]
    began = time.monotonic()
    saver.save(*trainer.saved)
    saving = time.monotonic() - began
    return Measured(KINDS[1], calm, [saving + trainer.step()], saving, saving)


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
        in_background(trainer, saver, said)  # its host memory is new
        found = [kind(trainer, saver, said) for _ in range(saves) for kind in (in_background, in_foreground)]
    if rank == 0:
        print(table(found), flush=True)
    os._exit(0)  # Python's own teardown would destroy threads of gloo that DeepSpeed's groups still hold


def table(found: list[Measured]) -> str:
    lines = [
        "| save | step without, s | step during, s | slower by | copying, s | done after, s | adds, s | each save |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        row = [one for one in found if one.kind == kind]
        steps = [seconds for one in row for seconds in one.calm], [statistics.mean(one.during) for one in row]
        whole = [one.copying for one in row], [one.saving for one in row], [one.added_seconds for one in row]
        calm, during, *rest = (f"{statistics.median(values):.2f}" for values in (*steps, *whole))
        slower = f"{statistics.median(one.slowdown for one in row):.0%}"
        each = ", ".join(f"{one.slowdown:.0%}" for one in row)
        lines.append(f"| {' | '.join((kind, calm, during, slower, *rest, each))} |")
    return "\n".join(lines)


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
