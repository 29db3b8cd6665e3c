"""Saving while the training goes on: real workers (gloo, DeepSpeed), and stores whose writes are held up or fail."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from pyarrow import fs

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.config.training import Checkpointing, Training
from raystage.errors import RaystageError
from raystage.files.filesystem import Folder, open_folder
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress, StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train import saving
from raystage.train.heartbeat import Heartbeat
from raystage.train.partitions import Partition
from raystage.train.saving import Counts, HostCopies, Saver
from raystage.train.stage_runner import JobContext
from raystage.train.state.shards import fragments_of
from raystage.train.worker import Job, train_stages

PATIENCE_SECONDS = 60.0
SAVED_AT = (200, 400, 600, 800)  # tokens; 100 a step


class Gate(fs.LocalFileSystem):
    """The local file system, but shards of the checkpoint of `held` tokens are not begun before `opened`, and those of
    `full` tokens do not fit."""

    held = full = -1

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.opened = threading.Event()

    def open_output_stream(self, path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith(".safetensors"):
            tokens = int(path.split("/")[-2].partition("-")[0])
            if tokens == self.held and not self.opened.wait(PATIENCE_SECONDS):
                raise OSError("nobody opened the gate")
            if tokens == self.full:
                raise OSError(28, "No space left on device")
        return super().open_output_stream(path, *arguments, **options)


@dataclass(frozen=True)
class Seen:
    """What a worker saw: the messages (the first worker alone), and the error that ended the training."""

    said: list[str] = field(default_factory=list)
    error: str = ""


def connect() -> None:
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)


# --- whole stages -----------------------------------------------------------------------------


def the_stage(schedule: Schedule, background: bool) -> StagePlan:
    """The schedule's first: 8 steps, saved at SAVED_AT; every checkpoint stays."""
    stage = make_plan(schedule).staged.stages[0]
    kept = Checkpointing(keep_last=10, keep_best=10, background=background)
    return replace(stage, training=stage.training.overlaid(Training(checkpoint=kept)))


def trained(stage: StagePlan, path: str, held: int = -1, full: int = -1) -> Seen:
    """Train it. The first worker's shard of `held` tokens is held up for two steps, the second's of `full` fails."""
    gate, said = Gate(use_mmap=True), []
    if comm.get_rank() == 0:
        gate.held = held
    else:
        gate.full = full

    def send(kind: str, key: str, what: Any) -> None:
        said.append(f"trained {what.steps}" if kind == "trained" else kind)
        if said[-1] == f"trained {held // 100 + 2}":
            gate.opened.set()

    store = Store(Folder(gate, path))
    try:
        with Saver(store, "attempt", send, stage.training.checkpoint.background) as saver:
            train_stages(Job((stage,), path), JobContext("", store, saver, send, Heartbeat()))
    except RaystageError as error:
        return Seen(said, f"{type(error).__name__}: {error}")
    return Seen(said)


def train_all(schedule: Schedule, path: str) -> dict[str, Seen]:
    """All that the tests below look at, each in a store of its own."""
    connect()
    background, foreground = (the_stage(schedule, choice) for choice in (True, False))
    return {
        "foreground": trained(foreground, f"{path}/foreground"),
        "background": trained(background, f"{path}/background", held=200),
        "full": trained(background, f"{path}/full", full=400),
        "full in the foreground": trained(foreground, f"{path}/full in the foreground", full=400),
    }


@dataclass(frozen=True)
class Round:
    path: Path
    key: str
    seen: list[dict[str, Seen]]

    def store(self, name: str) -> Store:
        return Store(open_folder(self.path / name))

    def record(self, name: str) -> StageRecord:
        return self.store(name).record(self.key)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Round:
    schedule = make_schedule(tmp_path_factory.mktemp("text"), training={"workers": 2})
    folder = tmp_path_factory.mktemp("stores")
    seen = run_workers(2, train_all, schedule, str(folder), folder=folder / "processes")
    return Round(folder, the_stage(schedule, True).key, seen)


@pytest.mark.end_to_end
def test_the_training_goes_on_while_a_checkpoint_is_written(done: Round) -> None:
    """The gate is opened by the second step after the save; the save after that waits."""
    said = done.seen[0]["background"].said
    assert done.seen[0]["background"].error == ""
    assert said.index("trained 4") < said.index("saved") < said.index("trained 5")
    assert said.count("saved") == len(SAVED_AT)
    assert said[-2:] == ["saved", "finished"]


@pytest.mark.end_to_end
def test_in_the_foreground_it_waits(done: Round) -> None:
    said = done.seen[0]["foreground"].said
    assert said.index("trained 2") < said.index("saved") < said.index("trained 3")


@pytest.mark.end_to_end
def test_both_write_the_same_bytes_and_end_with_the_same_bits(done: Round) -> None:
    """Of the checkpoint that was held up, too: it is what the model was, not what it became meanwhile."""
    for tokens in SAVED_AT:
        one, other = (
            done.path / name / "stages" / done.key / "checkpoints" / f"{tokens:015}-attempt"
            for name in ("background", "foreground")
        )
        files = sorted(path.name for path in one.iterdir())
        assert sum(name.endswith("-of-00002.safetensors") for name in files) == 2
        for name in files:
            assert name == "manifest.json" or (one / name).read_bytes() == (other / name).read_bytes()
        manifests = [Checkpoint(open_folder(place)).manifest for place in (one, other)]
        assert timeless(manifests[0].progress) == timeless(manifests[1].progress)
        assert replace(manifests[0], progress={}) == replace(manifests[1], progress={})
    background, foreground = done.record("background"), done.record("foreground")
    assert background.eval_loss == foreground.eval_loss
    assert [point.loss for point in background.train] == [point.loss for point in foreground.train]


def timeless(progress: dict[str, Any]) -> dict[str, Any]:
    """Where training stood, without how long it took."""
    points = [[point["steps"], point["loss"]] for point in (*progress["train"], *progress["evaluations"])]
    return {"points": points, **{key: progress[key] for key in ("steps", "tokens", "flops", "evaluation_flops")}}


@pytest.mark.end_to_end
@pytest.mark.parametrize(("name", "last_step"), [("full", 6), ("full in the foreground", 4)])
def test_what_one_worker_runs_into_ends_all_of_them_and_the_checkpoint_before_stays(
    done: Round, name: str, last_step: int
) -> None:
    """In the background at the next save."""
    errors = {seen[name].error for seen in done.seen}
    assert len(errors) == 1
    assert errors.pop().endswith(
        "000000000000400-attempt/shard-00001-of-00002.safetensors: "
        "cannot be written ([Errno 28] No space left on device)"
    )
    said = done.seen[0][name].said
    assert said.count("saved") == 1
    assert [word for word in said if word.startswith("trained")][-1] == f"trained {last_step}"
    assert done.record(name) is None
    assert done.store(name).latest_checkpoint(done.key).name == "000000000000200-attempt"


# --- a saver by itself ------------------------------------------------------------------------


def a_stage(folder: Path) -> StagePlan:
    (folder / "text").mkdir(exist_ok=True)
    return make_plan(make_schedule(folder / "text")).staged.stages[0]


def parts_of(stage: StagePlan, value: float) -> list[Partition]:
    """All of a model, on one worker."""
    found = []
    for one in parameters(stage.shape):
        tensors = {state: torch.full((one.numel,), value) for state in ("fp32", "exp_avg", "exp_avg_sq")}
        found.append(Partition(one.name, 0, one.numel, tensors, (0, one.numel), tensors["fp32"]))
    return found


def begin(saver: Saver, stage: StagePlan, tokens: int) -> None:
    """Begin to save a model of which every number is `tokens`; they change as soon as it has begun."""
    parts = parts_of(stage, float(tokens))
    steps = {one.name: tokens for one in parameters(stage.shape)}
    saver.begin(stage, parts, Counts(steps, {}), lambda: Progress(tokens, tokens, 0))
    for part in parts:
        for values in part.tensors.values():
            values.fill_(-1.0)


def stored(path: Path, stage: StagePlan) -> list[int]:
    """The tokens of the whole checkpoints, once it is seen that all their numbers are that."""
    found = []
    folder = Store(open_folder(path)).stage_folder(stage.key) / "checkpoints"
    for name in folder.names():
        opened = Checkpoint(folder / name)
        for one in parameters(stage.shape):
            for state in opened.states:
                assert (opened.read(one.name, state, 0, one.numel) == opened.manifest.tokens).all()
        found.append(opened.manifest.tokens)
        opened.close()
    return found


def save_twice(stage: StagePlan, path: str) -> list[str]:
    """The first save is held up; what happens, in order."""
    connect()
    gate, events = Gate(use_mmap=True), []
    gate.held = 1

    def open_gate() -> None:
        events.append("opened")
        gate.opened.set()

    with Saver(Store(Folder(gate, path)), "attempt", lambda kind, *_: events.append(kind), True) as saver:
        begin(saver, stage, 1)
        saver.tell()
        events.append("begun")
        threading.Timer(0.5, open_gate).start()
        begin(saver, stage, 2)
        events.append("begun")
        saver.wait()
    return events


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    stage = a_stage(tmp_path)
    (events,) = run_workers(1, save_twice, stage, str(tmp_path / "store"), folder=tmp_path / "processes")
    assert events == ["begun", "opened", "saved", "begun", "saved"]
    assert stored(tmp_path / "store", stage) == [1, 2]


def leave_while_saving(folder: str) -> None:
    """A training that ends with an error of its own while a checkpoint is being written."""
    rendezvous = {"init_method": f"file://{folder}/rendezvous", "rank": 0, "world_size": 1}
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, **rendezvous)
    stage, gate = a_stage(Path(folder)), Gate(use_mmap=True)
    gate.held = 1
    with Saver(Store(Folder(gate, f"{folder}/store")), "attempt", lambda *_: None, True) as saver:
        begin(saver, stage, 1)
        threading.Timer(0.5, gate.opened.set).start()
        raise RuntimeError("the training went wrong")


def test_a_process_that_ends_while_it_saves_neither_hangs_nor_aborts(tmp_path: Path) -> None:
    """Its own error comes out, and what it was saving is whole."""
    code = f"import test_background_saving as here; here.leave_while_saving({str(tmp_path)!r})"
    tests, package = Path(__file__).parents[1], Path(saving.__file__).parents[2]
    path = [str(tests / "train"), str(tests / "support"), str(package)]
    script = f"import sys; sys.path[:0] = {path!r}; {code}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS * 2)
    assert ended.stderr.strip().endswith("RuntimeError: the training went wrong")
    assert ended.returncode == 1
    assert stored(tmp_path / "store", a_stage(tmp_path)) == [1]


def test_host_memory_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, which a fragment longer than one does not fit into and gets one of its own."""
    monkeypatch.setattr(saving, "BLOCK_NUMEL", 100)
    stage, copies = a_stage(tmp_path), HostCopies()
    first, second = (fragments_of(parts_of(stage, value)) for value in (1.0, 2.0))
    taken = copies.of(first)
    places = [one.values.data_ptr() for one in taken]
    assert [one.span for one in taken] == [one.span for one in first]
    assert all((one.values == 1).all() for one in taken)
    again = copies.of(second)
    assert [one.values.data_ptr() for one in again] == places
    assert all((one.values == 2).all() for one in again)
    assert [one.values.numel() for one in copies.of(second[:3])] == [one.values.numel() for one in second[:3]]
