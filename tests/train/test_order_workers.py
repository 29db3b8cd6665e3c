"""How a text is read, on real workers: documents kept apart, and in the order of a curriculum from stage to stage."""

from __future__ import annotations

import random
import string
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from reading_log import read_by
from torch.nn import functional

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.data.order.pool import PacedOrder
from raystage.data.tokens import open_streams
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source
from raystage.train.texts import evaluation_set
from staged_runs import losses, train

pytestmark = pytest.mark.end_to_end

APART = {"window": {"mask": "document"}}
WAYS = {"one": (1, 1), "killed": (1, 1), "two": (2, 1), "three": (3, 3)}


def schedule_of(folder: Path, workers: int, zero_stage: int) -> Schedule:
    """Documents of 3 to 40 bytes in windows of 20 tokens. The first stage attends across them, the second does not."""
    (folder / "text").mkdir(exist_ok=True)
    stages = [
        {"name": "across", "model": {"num_layers": 1}, "until": {"tokens": 800}},
        {"name": "apart", "model": {"num_layers": 2}, "until": {"tokens": 1200}, "data": APART,
         "grow": {"operator": "identity"}},
        {"name": "learned", "model": {"num_layers": 4}, "until": {"tokens": 400}, "data": APART,
         "grow": {"operator": "learned", "fit_steps": 2}},
    ]  # fmt: skip
    training = {"workers": workers, "zero_stage": zero_stage, "optimizer": {"lr": 1e-2}, "checkpoint": {"every": 400}}
    training["activation_checkpointing"] = zero_stage == 3
    schedule = make_schedule(
        folder / "text", stages=stages, training=training, baseline=None, model={"context_length": 20}
    )
    for number in range(60):
        (folder / "text" / f"short{number}.txt").write_text(f"{number} " * (1 + number % 9))
    return schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("order")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, list[StageRecord]]:
    """By way the records of all stages."""
    schedules = {way: schedule_of(folder, *layout) for way, layout in WAYS.items()}
    stops = {"killed": (1, 4)}  # inside the first stage, and then inside the second
    return {way: train(one, folder / f"store-{way}", stops.get(way, ())) for way, one in schedules.items()}


def test_killed_and_resumed_is_the_same(trained: dict[str, list[StageRecord]]) -> None:
    assert losses(trained["killed"]) == losses(trained["one"])


@pytest.mark.parametrize("way", ["two", "three"])
def test_several_workers_train_what_one_trains(trained: dict[str, list[StageRecord]], way: str) -> None:
    """A micro batch has other documents then, in other rows."""
    for one, other in zip(losses(trained["one"]), losses(trained[way]), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_a_growth_is_judged_on_the_text_as_the_stage_before_read_it(trained: dict[str, list[StageRecord]]) -> None:
    """It changed nothing of the model: the loss is as it was where documents are not told apart, and the stage's own
    first evaluation is another."""
    across, apart, _ = trained["two"]
    certificate = apart.growth.certificate
    assert certificate.eval_loss_before == across.eval_loss
    assert certificate.eval_loss_after == pytest.approx(across.eval_loss, abs=2e-5)
    assert abs(apart.evaluations[0].loss - across.eval_loss) > 1e-3


def test_the_loss_is_that_of_transformers_document_by_document(
    trained: dict[str, list[StageRecord]], folder: Path
) -> None:
    stage, record = make_plan(schedule_of(folder, 2, 1)).staged.stages[1], trained["two"][1]
    source = open_source(stage.key, Store(open_folder(str(folder / "store-two"))))
    export(source, open_folder(str(folder / "exported")), ExportOptions())
    network = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
    held_out, total, targets = evaluation_set(stage), 0.0, 0
    for tokens, starts in zip(held_out.arrays["tokens"], held_out.arrays["starts"], strict=True):
        begins = [0, *(starts[1:].nonzero()[0] + 1).tolist(), len(tokens)]
        for first, last in pairwise(begins):
            document = torch.from_numpy(tokens[first:last])
            if len(document) > 1:
                with torch.no_grad():
                    logits = network(document[None, :-1]).logits[0]
                total += functional.cross_entropy(logits, document[1:], reduction="sum").item()
                targets += len(document) - 1
    assert 0 < targets < held_out.count * held_out.length
    assert record.eval_loss == pytest.approx(total / targets, rel=1e-5)


# --- curricula ----------------------------------------------------------------------------------

# By stage its workers, context, batch and tokens. The second begins within a window, with another pacing; the third
# reads all of the text, the fourth begins with its long documents.
SORTED = {
    "short": (2, 20, 80, 400, {"start": 0.3, "over": 400}),
    "more": (3, 10, 60, 300, {"start": 0.1, "pacing": "linear", "over": 120}),
    "all": (2, 20, 40, 600, None),
    "long": (1, 20, 40, 200, {"from": "hard", "start": 0.2, "over": 0.5}),
}


def sorted_schedule(folder: Path, alone: bool = False) -> Schedule:
    (folder / "texts").mkdir(exist_ok=True)
    stages = [
        {
            "name": name,
            "until": {"tokens": tokens},
            "model": {"num_layers": 1, "context_length": context},
            "training": {
                "workers": 1 if alone else workers,
                "global_batch_tokens": batch,
                "checkpoint": {"every": 200},
            },
            "data": {"curriculum": curriculum},
        }
        for name, (workers, context, batch, tokens, curriculum) in SORTED.items()
    ]
    schedule = make_schedule(folder / "texts", stages=stages, baseline=None)
    rng = random.Random(0)
    for number in range(70):  # of random letters, so that a sequence stands in one place only
        (folder / "texts" / f"some{number}.txt").write_text(
            "".join(rng.choices(string.ascii_letters, k=3 + number % 40))
        )
    for path in (folder / "texts").glob("[0-9]*.txt"):
        path.unlink()
    return schedule


@pytest.fixture(scope="module")
def read(folder: Path) -> dict[str, list[list[list[int]]]]:
    """By way, stage by stage and step by step, the sequences that all workers trained on."""
    found = {}
    for way in ("alone", "changing"):
        schedule, steps = sorted_schedule(folder, way == "alone"), []
        for name, (workers, *_) in SORTED.items():
            count = 1 if way == "alone" else workers
            own = run_workers(count, read_by, schedule, str(folder / way), [name], folder=folder / f"{way}-{name}")
            steps += [list(chain.from_iterable(step)) for step in zip(*(one[0] for one in own), strict=True)]
        found[way] = steps
    return found


def test_sorted_text_is_the_same_for_any_number_of_workers(read: dict[str, list[list[list[int]]]]) -> None:
    assert read["alone"] == read["changing"]


def test_every_sample_of_sorted_text_is_read_as_the_law_says(
    read: dict[str, list[list[list[int]]]], folder: Path
) -> None:
    """While pacing, context, batch and workers change from stage to stage. The first three read one order of documents,
    window after window as the pool has them; none is read twice before all were, and none is left out."""
    plan = make_plan(sorted_schedule(folder)).staged.stages
    streams = open_streams(plan[0].data, plan[0].shape.vocab_size)
    documents = np.split(np.asarray(streams.train), streams.train_documents.begins[1:-1])
    easy = np.concatenate(sorted(documents, key=len))  # sorted() keeps equal ones in order
    hard = np.concatenate(sorted(documents, key=len, reverse=True))
    windows = (len(easy) - 1) // 20
    tokens = [token for step in chain.from_iterable(read["changing"]) for token in step[:-1]]
    (easy_name,), (hard_name,) = ([name for name, _ in plan[place].reading.shares] for place in (2, 3))
    places = [PacedOrder(0, windows, plan[3].paces[name]) for name in (easy_name, hard_name)]
    expected = np.concatenate(
        [easy[20 * place : 20 * place + 20] for place in (places[0].at(number) for number in range(65))]
        + [hard[20 * place : 20 * place + 20] for place in (places[1].at(number) for number in range(10))]
    )
    assert tokens == expected.tolist()
    order = [places[0].at(number) for number in range(65)]
    assert sorted(order[:windows]) == list(range(windows))  # which the pool is by then
    assert max(order[:10]) < 0.75 * windows
    assert places[1].at(0) < 0.2 * windows + 1


def test_a_curriculum_that_was_killed_has_the_same_bits(tmp_path: Path) -> None:
    schedule = sorted_schedule(tmp_path, alone=True)
    calm = train(schedule, tmp_path / "calm")
    assert losses(train(schedule, tmp_path / "stopped", stops=(1, 4, 6, 9))) == losses(calm)
