"""A curriculum by the loss under an earlier stage, on real workers: the losses, and the order that they make."""

from __future__ import annotations

import random
import shutil
import string
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from reading_log import read_by
from torch.nn import functional

from distributed import run_workers
from factories import make_schedule
from raystage.cluster.watchdog import BEFORE_TRAINING
from raystage.config.schedule import Schedule
from raystage.data.order.losses import parts_of
from raystage.data.order.pool import PacedOrder
from raystage.data.tokens import Streams, open_streams
from raystage.errors import CheckpointError, InputError
from raystage.files.filesystem import open_folder
from raystage.models.shape import flops_per_token
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.scores import KeptScores
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source
from raystage.train.heartbeat import Heartbeat
from raystage.train.scoring import losses as scoring_losses
from raystage.train.worker import Job, run_job
from staged_runs import Stopped, carry_out, losses, records_of

pytestmark = pytest.mark.end_to_end

# By stage its curriculum. "on" goes on in the order of "easy".
SORTED = {
    "easy": {"by": {"loss": "small"}, "start": 0.2, "over": 400},
    "on": None,
    "hard": {"by": {"loss": "small"}, "from": "hard", "start": 0.2, "over": 0.5},
}
# By way the number of workers of these stages. That of the first is always one: another would train another model.
WAYS = {"one": 1, "killed": 1, "two": 2, "three": 3}
WINDOW = 20


def schedule_of(folder: Path, workers: int) -> Schedule:
    """Documents of 1 to 90 bytes, of few letters or many; some are longer than the context."""
    text = folder / "text"
    text.mkdir(exist_ok=True)
    small = {"name": "small", "model": {"num_layers": 1}, "until": {"tokens": 2000}}
    others = [
        {"name": name, "model": {"num_layers": 2}, "until": {"tokens": 600}, "data": {"curriculum": curriculum},
         "training": {"workers": workers, "checkpoint": {"every": 200}}}
        for name, curriculum in SORTED.items()
    ]  # fmt: skip
    others[0]["grow"] = {"operator": "stack"}
    sizes = {"model": {"context_length": WINDOW}, "training": {"optimizer": {"lr": 1e-2}}}
    schedule = make_schedule(text, stages=[small, *others], baseline=None, **sizes)
    rng = random.Random(0)
    for path in text.glob("*.txt"):
        path.unlink()
    for number in range(80):
        letters = string.ascii_letters[: rng.choice([2, 6, 52])]
        (text / f"{number}.txt").write_text("".join(rng.choices(letters, k=1 + number * 41 % 90)))
    return schedule


def stopped_while_scoring(schedule: Schedule, store: str, parts: int) -> None:
    """On one of the workers: the first sorted stage, until this worker has kept so many parts."""
    write, stage, kept = KeptScores.write, make_plan(schedule).staged.stages[1], []

    def stopping(scores: KeptScores, number: int, part: object) -> None:
        write(scores, number, part)
        kept.append(number)
        if len(kept) == parts:
            raise Stopped

    KeptScores.write = stopping
    try:
        run_job(Job((stage,), store), lambda *message: None)
    except Stopped:
        return
    finally:
        KeptScores.write = write
    raise AssertionError("it was not stopped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("losses")


@pytest.fixture(scope="module")
def stages(folder: Path) -> tuple[StagePlan, ...]:
    return make_plan(schedule_of(folder, 1)).staged.stages


@pytest.fixture(scope="module")
def streams(stages: tuple[StagePlan, ...]) -> Streams:
    return open_streams(stages[0].data, stages[0].shape.vocab_size)


@pytest.fixture(scope="module")
def read(folder: Path) -> dict[str, list[list[list[int]]]]:
    """By way, step by step through the sorted stages, the sequences that all workers trained on. The first stage is
    trained once and copied. The killed way is stopped while it scores, and again in the midst of the first sorted
    stage."""
    run_workers(1, read_by, schedule_of(folder, 1), str(folder / "first"), ["small"], folder=folder / "processes-first")
    found = {}
    for way, workers in WAYS.items():
        schedule, store, steps = schedule_of(folder, workers), str(folder / way), []
        shutil.copytree(folder / "first", store)
        if way == "killed":
            run_workers(1, stopped_while_scoring, schedule, store, 3, folder=folder / "stopped")
            run_workers(1, carry_out, schedule, store, "saved", 1, folder=folder / "stopped")
        own = run_workers(workers, read_by, schedule, store, list(SORTED), folder=folder / f"processes-{way}")
        for stage in zip(*own, strict=True):
            steps += [list(chain.from_iterable(step)) for step in zip(*stage, strict=True)]
        found[way] = steps
    return found


def kept_losses(folder: Path, way: str, stage: StagePlan, streams: Streams) -> np.ndarray:
    sizes = [last - first for first, last in parts_of(streams.train_documents)]
    kept = KeptScores(Store(open_folder(str(folder / way))), stage.key, stage.data.content, sizes)
    assert not kept.missing()
    return np.concatenate([kept.read(number).losses for number in range(len(sizes))])


def oracle(folder: Path, stage: StagePlan, streams: Streams) -> list[float]:
    """The losses by transformers alone, document after document, of the exported model."""
    export(open_source(stage.key, Store(open_folder(str(folder / "first")))), open_folder(str(folder / "exported")),
           ExportOptions())  # fmt: skip
    network, found = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported").eval(), []
    for document in np.split(np.asarray(streams.train), streams.train_documents.begins[1:-1]):
        tokens = torch.from_numpy(document.astype(np.int64))
        total = 0.0
        for start in range(0, len(tokens) - 1, WINDOW):
            window = tokens[start : start + WINDOW + 1]
            with torch.no_grad():
                logits = network(window[None, :-1]).logits[0]
            total += functional.cross_entropy(logits, window[1:], reduction="sum").item()
        found.append(total / (len(tokens) - 1))
    return found


def test_the_losses_are_those_of_transformers(
    read: dict, folder: Path, stages: tuple[StagePlan, ...], streams: Streams
) -> None:
    expected = oracle(folder, stages[0], streams)
    assert len(expected) > 30
    assert max(streams.train_documents.lengths) > 3 * WINDOW
    assert kept_losses(folder, "one", stages[0], streams) == pytest.approx(expected, rel=1e-5)
    assert max(expected) - min(expected) > 0.1


@pytest.mark.parametrize("way", ["killed", "two", "three"])
def test_the_losses_are_the_same_bits_for_any_number_of_workers(
    way: str, read: dict, folder: Path, stages: tuple[StagePlan, ...], streams: Streams
) -> None:
    one, other = (kept_losses(folder, each, stages[0], streams) for each in ("one", way))
    assert other.tobytes() == one.tobytes()


@pytest.mark.parametrize("way", ["two", "three"])
def test_any_number_of_workers_reads_the_same(way: str, read: dict[str, list[list[list[int]]]]) -> None:
    assert read[way] == read["one"]


def test_what_was_killed_reads_on_as_if_nothing_had_happened(
    read: dict[str, list[list[list[int]]]], folder: Path
) -> None:
    """In the midst of scoring, and then after the first checkpoint of the first sorted stage."""
    steps = 200 // 100
    assert read["killed"] == read["one"][steps:]
    one, killed = (records_of(schedule_of(folder, 1), str(folder / way)) for way in ("one", "killed"))
    assert losses(killed) == losses(one)
    assert [record.flops for record in killed] == [record.flops for record in one]


def test_every_window_is_read_as_the_law_says(
    read: dict[str, list[list[list[int]]]], folder: Path, stages: tuple[StagePlan, ...], streams: Streams
) -> None:
    """The first two stages read one order of documents, window after window as the pool has them; the third the other
    way round."""
    scores = kept_losses(folder, "one", stages[0], streams)
    documents = np.split(np.asarray(streams.train), streams.train_documents.begins[1:-1])
    sorted_text = [
        np.concatenate([documents[place] for place in np.argsort(sign * scores, kind="stable")]) for sign in (1, -1)
    ]
    windows, expected = (len(sorted_text[0]) - 1) // WINDOW, []
    names = [stages[place].reading.shares[0][0] for place in (1, 3)]
    assert stages[2].reading.shares == stages[1].reading.shares
    for text, name, count in zip(sorted_text, names, (60, 30), strict=True):
        order = PacedOrder(0, windows, stages[3].paces[name])
        places = [order.at(number) for number in range(count)]
        assert len(set(places)) == min(count, windows)  # none twice before all were read
        expected += [text[WINDOW * place : WINDOW * place + WINDOW + 1].tolist() for place in places]
    assert list(chain.from_iterable(read["one"])) == expected


def test_records_say_what_was_scored(read: dict, folder: Path, stages: tuple[StagePlan, ...], streams: Streams) -> None:
    small, easy, on, hard = records_of(schedule_of(folder, 2), str(folder / "two"))
    tokens = len(streams.train)
    assert small.scoring is None
    assert (easy.scoring.model, easy.scoring.documents, easy.scoring.tokens) == (
        "small", len(streams.train_documents.lengths), tokens)  # fmt: skip
    assert easy.scoring.flops == tokens * (flops_per_token(stages[0].shape) // 3)
    assert 0 < easy.scoring.seconds < easy.seconds
    assert [record.flops for record in (easy, on, hard)] == [stage.flops for stage in stages[1:]]
    assert [record.scoring.tokens for record in (on, hard)] == [0, 0]
    assert on.scoring.digests == easy.scoring.digests
    assert len(hard.scoring.digests) == 2
    assert StageRecord.from_json(easy.to_json()) == easy


def test_a_damaged_part_is_scored_again(
    read: dict, folder: Path, tmp_path: Path, stages: tuple[StagePlan, ...], streams: Streams
) -> None:
    """A stage that is still to be trained finds all others."""
    shutil.copytree(folder / "one", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "stages" / stages[3].key)
    before = kept_losses(tmp_path, "store", stages[0], streams)
    parts = sorted((tmp_path / "store" / "stages" / stages[0].key / "scores" / stages[0].data.content).iterdir())
    times = [part.stat().st_mtime_ns for part in parts]
    parts[1].write_bytes(parts[1].read_bytes()[:-3])
    parts[2].unlink()
    schedule = schedule_of(folder, 1)
    (found,) = run_workers(1, read_by, schedule, str(tmp_path / "store"), ["hard"], folder=tmp_path)
    assert found[0] == read["one"][-6:]
    assert kept_losses(tmp_path, "store", stages[0], streams).tobytes() == before.tobytes()
    assert [part.stat().st_mtime_ns != time for part, time in zip(parts, times, strict=True)] == [
        place in (1, 2) for place in range(len(parts))
    ]


def where_a_loss_is_no_number(schedule: Schedule, store: str) -> tuple[str, list[str]]:
    """On a worker: the first sorted stage, where the model that scores has diverged. Returns the error, and what the
    worker said that it does."""
    stages = make_plan(schedule).staged.stages
    scored, done = scoring_losses.document_losses, []
    scoring_losses.document_losses = lambda *arguments: scored(*arguments) * np.nan
    try:
        run_job(Job((stages[1],), store), lambda *message: None, Heartbeat(lambda doing, patience: done.append(doing)))
    except InputError as error:
        return str(error), done
    finally:
        scoring_losses.document_losses = scored
    return "", done


def test_a_loss_that_is_no_number_is_refused(read: dict, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "first", tmp_path / "store")
    ((said, done),) = run_workers(
        1, where_a_loss_is_no_number, schedule_of(folder, 1), str(tmp_path / "store"), folder=tmp_path / "processes"
    )
    assert said == (
        "data.curriculum.by.loss: found 'small', which gives a document the loss nan; expected a model whose loss is a "
        "number"
    )
    assert not list((tmp_path / "store").rglob("*.losses"))
    assert done[-1] in BEFORE_TRAINING  # so that the driver tells the user what takes so long
    assert "score" in BEFORE_TRAINING[done[-1]]


def where_a_vocabulary_is_small(schedule: Schedule, store: str) -> str:
    """On a worker: the first sorted stage, as planned where nobody knew how many ids the tokenizer has."""
    stage = make_plan(schedule).staged.stages[1]
    scorer = replace(stage.scorer, shape=replace(stage.scorer.shape, vocab_size=200))
    try:
        run_job(Job((replace(stage, scorers=(scorer,)),), store), lambda *message: None)
    except InputError as error:
        return str(error)
    return ""


def test_a_vocabulary_that_turns_out_too_small_is_refused(read: dict, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "first", tmp_path / "store")
    store, processes = str(tmp_path / "store"), tmp_path / "processes"
    (said,) = run_workers(1, where_a_vocabulary_is_small, schedule_of(folder, 1), store, folder=processes)
    assert said.startswith("data.curriculum.by.loss: 'small', its vocabulary: found 200; expected at least 257")


def with_other_losses(schedule: Schedule, store: str, name: str) -> str:
    """On a worker: the stage of this name, where documents are scored as by another device. Returns what was said."""
    stages = make_plan(schedule).staged.stages
    shutil.rmtree(f"{store}/stages/{stages[0].key}/scores")
    read_part = KeptScores.read

    def other(scores: KeptScores, number: int) -> object:
        part = read_part(scores, number)
        return part and type(part)(part.losses + 1e-7, part.seconds)

    KeptScores.read = other
    try:
        run_job(Job(tuple(one for one in stages if one.name == name), store), lambda *message: None)
    except CheckpointError as error:
        return str(error)
    finally:
        KeptScores.read = read_part
    return ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("easy", "the checkpoint of easy after 2200 tokens sorted its text by other losses ("),
        ("on", "the stage before on sorted its text by other losses ("),
    ],
)
def test_nobody_reads_on_in_another_order(
    name: str, said: str, read: dict, folder: Path, tmp_path: Path, stages: tuple[StagePlan, ...]
) -> None:
    """Neither a stage that was begun nor the next one, where the losses were removed and came out otherwise."""
    store, schedule = str(tmp_path / "store"), schedule_of(folder, 1)
    shutil.copytree(folder / "one", store)
    for stage in stages[1 if name == "easy" else 2 :]:
        shutil.rmtree(f"{store}/stages/{stage.key}")
    if name == "easy":
        run_workers(1, carry_out, schedule, store, "saved", 1, folder=tmp_path / "stopped")
    (message,) = run_workers(1, with_other_losses, schedule, store, name, folder=tmp_path / "other")
    assert message.startswith(said)
    assert message.endswith("expected the same, or the stage trained from its start")
