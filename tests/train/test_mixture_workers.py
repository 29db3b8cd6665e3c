"""Mixtures on real workers: every sequence that a model got is looked up in its source, from stage to stage."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from mixtures import NAMES, WINDOW, changing_schedule, write_texts
from reading_log import place_of, read_by

from distributed import run_workers
from raystage.config.schedule import Schedule
from raystage.data.tokens import epoch_order, open_streams
from raystage.files.filesystem import open_folder
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from staged_runs import carry_out, records_of

pytestmark = pytest.mark.end_to_end

STAGES = ("one", "two", "three")
WORKERS = (2, 3, 2)


@dataclass(frozen=True)
class Runs:
    """steps: of the run whose workers change, step by step the sequences of all workers. alone: of one worker."""

    schedule: Schedule
    steps: list[list[list[int]]]
    alone: list[list[list[int]]]
    store: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("mixtures")
    write_texts(folder)
    schedule, steps = changing_schedule(folder, WORKERS), []
    for name, count in zip(STAGES, WORKERS, strict=True):
        found = run_workers(count, read_by, schedule, str(folder / "store"), [name], folder=folder / name)
        steps += [list(chain.from_iterable(step)) for step in zip(*(worker[0] for worker in found), strict=True)]
    alone = changing_schedule(folder, (1, 1, 1))
    (found,) = run_workers(1, read_by, alone, str(folder / "alone"), list(STAGES), folder=folder / "of-one")
    return Runs(schedule, steps, list(chain.from_iterable(found)), folder / "store")


def places(schedule: Schedule, steps: list[list[list[int]]]) -> dict[str, list[tuple[int, int]]]:
    """By source the (start, length) of everything that was read of it, in order."""
    plan = make_plan(schedule).staged.stages
    data = {part.name: part.data for stage in plan for part in stage.data.parts}
    streams = {name: open_streams(data[name], plan[0].shape.vocab_size).train for name in NAMES}
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for sequence in chain.from_iterable(steps):
        (place,) = [(name, at) for name in NAMES if (at := place_of(sequence, streams[name])) is not None]
        found[place[0]].append((place[1], len(sequence) - 1))
    return found


def test_no_sample_is_read_twice_and_none_is_left_out(runs: Runs) -> None:
    """While mixture, context length, batch, workers and model all change at once: every source's windows are read in
    the order of its epochs, each to its end."""
    plan = make_plan(runs.schedule).staged.stages
    found, total = places(runs.schedule, runs.steps), 0
    assert set(found) == set(NAMES)
    for name in NAMES:
        tokens = [token for start, length in found[name] for token in range(start, start + length)]
        data = next(part.data for stage in plan for part in stage.data.parts if part.name == name)
        windows = (len(open_streams(data, 257).train) - 1) // WINDOW
        order = np.concatenate([epoch_order(0, epoch, windows) for epoch in range(3)])
        expected = (order[:, None] * WINDOW + np.arange(WINDOW)).flatten()
        assert tokens == expected[: len(tokens)].tolist()
        total += len(tokens)
    assert total == sum(stage.duration for stage in plan) == 1360
    assert len(found["a"]) * 8 > windows  # and an epoch ended on the way


def test_the_shares_are_those_of_the_weights(runs: Runs) -> None:
    read = {name: sum(length for _, length in found) for name, found in places(runs.schedule, runs.steps).items()}
    # 5 of 10 windows; then 2 and 6 of 8, the last of which ends in stage three; then 24.5 more, by 3 : 3 : 4.
    assert read["a"] / WINDOW == pytest.approx(5 + 0.3 * 24.5, abs=1)
    assert read["b"] / WINDOW == pytest.approx(5 + 2 + 0.3 * 24.5, abs=1)
    assert read["c"] / WINDOW == pytest.approx(6 + 0.4 * 24.5, abs=1)


def test_one_worker_reads_the_same_in_every_step(runs: Runs) -> None:
    assert runs.alone == runs.steps


def test_the_record_has_the_loss_on_every_source(runs: Runs) -> None:
    plan = make_plan(runs.schedule).staged.stages
    for stage, record in zip(plan, records_of(runs.schedule, str(runs.store)), strict=True):
        for point in record.evaluations:
            assert list(point.sources) == [part.data.content for part in stage.evaluated]
            mean = sum(float(part.weight) * point.sources[part.data.content] for part in stage.data.parts)
            assert point.loss == pytest.approx(mean)
            assert len(set(point.sources.values())) == len(stage.evaluated)
        assert set(record.data["sources"]) >= set(record.end.sources)


def test_a_growth_is_judged_on_the_sources_of_the_stage_before(runs: Runs) -> None:
    """By the mean over the mixture of that stage."""
    _, two, three = records_of(runs.schedule, str(runs.store))
    certificate = three.growth.certificate
    assert (two.shape.num_layers, three.shape.num_layers, three.growth.operator) == (1, 2, "stack")
    assert certificate.eval_loss_before == pytest.approx(two.end.loss)
    assert certificate.eval_loss_after != certificate.eval_loss_before


# --- killed and resumed ---------------------------------------------------------------------------


def killed(schedule: Schedule, folder: str) -> None:
    carry_out(schedule, f"{folder}/calm")
    for stop in (2, 7, 9):
        carry_out(schedule, f"{folder}/{stop}", "saved", stop)
        carry_out(schedule, f"{folder}/{stop}")


def test_a_run_that_was_killed_has_the_same_bits(tmp_path: Path) -> None:
    write_texts(tmp_path)
    schedule = changing_schedule(tmp_path, (1, 1, 1))
    run_workers(1, killed, schedule, str(tmp_path), folder=tmp_path / "processes")
    calm = records_of(schedule, f"{tmp_path}/calm")
    for stop in (2, 7, 9):
        for record, other in zip(calm, records_of(schedule, f"{tmp_path}/{stop}"), strict=True):
            assert told(record) == told(other)
        ends = [_end(schedule, f"{tmp_path}/{name}") for name in ("calm", stop)]
        for parameter in parameters(calm[-1].shape):
            one, two = (end.read(parameter.name, "fp32", 0, parameter.numel) for end in ends)
            np.testing.assert_array_equal(one, two)


def told(record: StageRecord) -> tuple:
    losses = [(point.position, point.loss, point.sources) for point in record.evaluations]
    return losses, [(point.position, point.loss) for point in record.train]


def _end(schedule: Schedule, store: str) -> Checkpoint:
    last = make_plan(schedule).staged.stages[-1]
    return Checkpoint(Store(open_folder(store)).finished_checkpoint(last.key))
