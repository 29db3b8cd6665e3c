"""Random runs, read through their plans: every source is read on and on, whatever changes between the stages.

`test_mixture_workers` shows for one run that workers read what its plan says. Here are hundreds of runs,
and no workers.
"""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mixtures import NAMES, WINDOW, entry, mixed_schedule, write_texts

from factories import make_record
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.planning.build import make_plan
from raystage.planning.inputs import Sources
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord, where_it_begins, with_real_ends

RUNS = 150


def random_data(folder: Path, rng: random.Random, mixed: bool) -> dict[str, Any]:
    """One text, or several with weights that add up to 1."""
    names = rng.sample(NAMES, rng.randint(1, len(NAMES)))
    if len(names) == 1 and not mixed:
        one = entry(folder, names[0], None)
        return {key: value for key, value in one.items() if key not in ("name", "weight")}
    cuts = sorted(rng.sample(range(1, 20), len(names) - 1))
    weights = [(high - low) / 20 for low, high in zip([0, *cuts], [*cuts, 20], strict=True)]
    return {"mixture": [entry(folder, *pair) for pair in zip(names, weights, strict=True)]}


def random_stages(folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Mixtures, contexts, batches, workers, ramps and lengths at random. The first stage has a mixture and the longest
    context, so that every source has a cursor from the start."""
    stages = []
    for index in range(rng.randint(2, 5)):
        context = WINDOW if not index else rng.choice([WINDOW, WINDOW // 2, WINDOW // 4])
        batch = context * rng.choice([1, 2, 3, 4, 6, 8])
        training: dict[str, Any] = {"global_batch_tokens": batch, "workers": rng.randint(1, batch // context)}
        if batch // context in (4, 8) and rng.random() < 0.5:
            start = batch // rng.choice([2, 4])
            training["ramp"] = {"global_batch_tokens": {"from": start, "over": {"tokens": 2 * batch}}}
            training["workers"] = 1
        until = {"tokens": rng.randint(4 * batch, 900)} if 4 * batch < 900 else {"steps": 5}
        data = random_data(folder, rng, mixed=not index)
        stages.append({"name": f"s{index}", "until": until, "data": data, "training": training})
        stages[-1]["model"] = {"context_length": context}
    return stages


def read_of(stage: StagePlan) -> Iterator[tuple[str, int, int]]:
    """(content, first token, length) of every sequence of a stage, the first token counted through all epochs."""
    for step in range(stage.steps):
        segment = stage.step_schedule.at(step)
        begins = stage.start + segment.start + (step - segment.start_steps) * segment.batch
        for position in range(begins, begins + segment.batch, segment.context_length):
            number, inside = divmod(position, stage.window)
            content, index = stage.reading.at(number)
            yield content, index * stage.window + inside, segment.context_length


def check_continues(stages: tuple[StagePlan, ...]) -> int:
    """Every source from its first token on, none twice and none left out; returns how many were read."""
    reached: dict[str, int] = defaultdict(int)
    windows: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for stage in stages:
        before = dict(reached)
        for content, start, length in read_of(stage):
            window = start // stage.window
            assert windows[content][window] == start % stage.window, "the parts of a window follow each other"
            windows[content][window] += length
            reached[content] += length
        taken = {one: count - before.get(one, 0) for one, count in reached.items() if count > before.get(one, 0)}
        assert taken == stage.reading.amounts(stage.start, stage.end), "what `raystage plan` says"
    for content, parts in windows.items():
        assert list(parts) == list(range(len(parts))), "windows are begun in order, each once"
        open_ones = [window for window, count in parts.items() if count < stages[0].window]
        assert len(open_ones) <= 1, "a window is read to its end before another is begun"
        assert sum(parts.values()) == reached[content]
    return sum(reached.values())


def random_runs(folder: Path, seed: int) -> Iterator[tuple[StagePlan, ...]]:
    sources, rng = Sources(), random.Random(seed)
    for _ in range(RUNS):
        with contextlib.suppress(InputError):  # batches that do not fit the contexts
            yield make_plan(mixed_schedule(folder, random_stages(folder, rng)), sources=sources).staged.stages


@pytest.mark.parametrize("seed", range(4))
def test_every_source_continues_where_it_was_left(seed: int, tmp_path: Path) -> None:
    write_texts(tmp_path)
    read = [check_continues(stages) for stages in random_runs(tmp_path, seed)]
    assert len(read) > RUNS // 3
    assert sum(read) > 100_000


def test_stages_that_end_early_leave_nothing_out(tmp_path: Path) -> None:
    """As workers place the stages after others that ended before their caps."""
    write_texts(tmp_path)
    rng, count = random.Random(9), 0
    for planned in random_runs(tmp_path, 5):
        records: dict[str, StageRecord] = {}
        done: list[StagePlan] = []
        for stage in planned:
            now = with_real_ends(where_it_begins(stage, records.get(stage.parent_key)), records.get)
            done.append(replaced(now, steps=rng.randint(1, stage.steps)))
            records[stage.key] = make_record(done[-1], 3.0)
        count += check_continues(tuple(done)) > 0
    assert count > RUNS // 3
