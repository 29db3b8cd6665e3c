"""How a text is read, on real workers: documents kept apart, killed and resumed, on one worker and on three."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source
from raystage.train.texts import evaluation_set
from staged_runs import carry_out, records_of

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


def carry_out_in_parts(schedule: Schedule, store: str, is_killed: bool) -> None:
    for count in (1, 4) if is_killed else ():  # inside the first stage, and then inside the second
        carry_out(schedule, store, "saved", count)
    carry_out(schedule, store)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("order")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, list[StageRecord]]:
    """By way the records of all stages."""
    found = {}
    for way, (workers, zero_stage) in WAYS.items():
        schedule, store = schedule_of(folder, workers, zero_stage), str(folder / f"store-{way}")
        run_workers(workers, carry_out_in_parts, schedule, store, way == "killed", folder=folder / f"processes-{way}")
        found[way] = records_of(schedule, store)
    return found


def losses(records: list[StageRecord]) -> list[list[float]]:
    return [[point.loss for point in (*record.train, *record.evaluations)] for record in records]


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
