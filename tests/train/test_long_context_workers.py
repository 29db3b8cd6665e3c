"""A stage that changes rotary base, YaRN, context and rate at once, trained by DeepSpeed: as a plain loop does, with
the same bits when it is stopped on the way, and as transformers reads it afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from distributed import run_workers
from exports import exported
from factories import make_schedule
from plain_training import GrownStart, evaluated, model_in, trained
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.files.reading import LocalFiles
from raystage.models.hf_folder import open_trainable
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from staged_runs import carry_out, records_of

pytestmark = pytest.mark.end_to_end

LR = 2e-2
# The second stage saves at its start's 200, 400 and 600 tokens and at its end; the first message of all is its 200.
STOPS = (2, 3, 5, 6, 7)
LONG = {
    "name": "long",
    "until": {"tokens": 800},
    "model": {"context_length": 20, "rope_theta": "2M", "rope_scaling": {"kind": "yarn", "factor": 2}},
    "training": {"lr_schedule": {"from": "current", "kind": "1-sqrt", "min_lr_ratio": 0.1}},
}


def schedule_of(text: Path) -> Schedule:
    training = {
        "zero_stage": 2, "global_batch_tokens": 200, "checkpoint": {"every": 200}, "evaluate": {"every": 400},
        "optimizer": {"lr": LR}, "lr_schedule": {"kind": "cosine", "warmup": 200, "min_lr_ratio": 0.1},
    }  # fmt: skip
    stages = [{"name": "short", "until": {"tokens": 800}}, LONG]
    return make_schedule(
        text, model={"num_layers": 2, "hidden_size": 32}, stages=stages, training=training, baseline=None
    )


def run_all(schedule: Schedule, folder: str) -> None:
    carry_out(schedule, f"{folder}/calm")
    for stop in STOPS:
        carry_out(schedule, f"{folder}/{stop}", "saved", stop)
        carry_out(schedule, f"{folder}/{stop}")


class Run:
    def __init__(self, text: Path, folder: Path) -> None:
        self.schedule, self.folder = schedule_of(text), folder
        self.stages: tuple[StagePlan, ...] = make_plan(self.schedule).staged.stages

    def records(self, store: object = "calm") -> list[StageRecord]:
        return records_of(self.schedule, f"{self.folder}/{store}")

    def end(self, stage: StagePlan, store: object = "calm") -> Checkpoint:
        return Checkpoint(Store(open_folder(self.folder / str(store))).finished_checkpoint(stage.key))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("long"))
    run_workers(1, run_all, made.schedule, str(made.folder), folder=made.folder / "processes")
    return made


def test_it_trains_as_a_plain_loop_does(run: Run) -> None:
    short, long = run.stages
    record = run.records()[1]
    plain = trained(long, GrownStart(long, run.end(short)))
    assert record.eval_loss == pytest.approx(evaluated(plain, long), rel=1e-5)
    assert abs(record.evaluations[0].loss - record.eval_loss) > 1e-3


def test_its_rate_continues_the_one_before(run: Run) -> None:
    """In the middle of each step: 600 of 1,400 tokens of the cosine are done where the stage begins."""
    before, after = ([point.lr for point in record.train] for record in run.records())
    assert len(before) == len(after) == 4
    start = LR * (0.1 + 0.9 * (1 + torch.cos(torch.tensor(torch.pi * 600 / 1400, dtype=torch.float64)).item()) / 2)
    assert before[-1] > start > after[0]
    expected = [start * (1 - 0.9 * (middle / 800) ** 0.5) for middle in (100, 300, 500, 700)]
    assert after == pytest.approx(expected, rel=1e-12)


def test_the_certificate_says_what_the_positions_did(run: Run) -> None:
    """The same weights with other positions are another function: on the same text the loss is the one that a plain
    model with them has."""
    short, long = run.stages
    certificate = run.records()[1].growth.certificate
    assert certificate.exact is False
    assert certificate.max_logit_difference > 1e-4
    assert certificate.gradient_error is None
    assert certificate.gradient_error_estimated > 1e-3
    losses = [evaluated(model_in(run.end(short), shape), short) for shape in (short.shape, long.shape)]
    assert certificate.eval_loss_before == pytest.approx(losses[0], rel=1e-5)
    assert certificate.eval_loss_after == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-5


@pytest.mark.parametrize("stop", STOPS)
def test_stopped_on_the_way_and_started_again_gives_the_same_bits(run: Run, stop: int) -> None:
    for stage in run.stages:
        calm, again = (run.end(stage, store).manifest for store in ("calm", stop))
        assert [shard.checksum for shard in calm.shards] == [shard.checksum for shard in again.shards]
        assert (calm.tokens, calm.model) == (again.tokens, again.model)
    rates = [[point.lr for point in run.records(store)[1].train] for store in ("calm", stop)]
    assert rates[0] == rates[1]


def test_transformers_reads_the_end_and_a_run_starts_from_it(run: Run, tmp_path: Path) -> None:
    long = run.stages[1]
    exported(Path(run.end(long).folder.uri), tmp_path / "out")
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["max_position_embeddings"] == 20
    assert said["rope_parameters"] == {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10, "rope_theta": 2e6
    }  # fmt: skip
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="sdpa").eval()
    assert evaluated(loaded, long) == pytest.approx(run.records()[1].eval_loss, rel=1e-5)
    assert open_trainable(LocalFiles(tmp_path / "out")).shape == long.shape
