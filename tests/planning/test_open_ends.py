"""Stages that end on what training shows: what that leaves fixed in the plan, and what it moves when it happens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans import learning_rate
from raystage.plans.keys import placed
from raystage.plans.stage import Growth, StagePlan
from raystage.results.record import StageRecord, where_it_begins
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train.worker import Job, run_job

CAP = 1600


def schedule(text: Path, until: dict, last: dict | None = None, **training: object) -> Schedule:
    """A stage with an open end, one of 1,200 tokens, and one of 400 (`last`); the run decays over its last 640."""
    return make_schedule(
        text,
        training={"evaluate": {"every": 200}, **training},
        stages=[
            {"name": "open", "model": {"num_layers": 1}, "until": {**until, "tokens": CAP}},
            {"name": "full", "model": {"num_layers": 2}, "until": {"tokens": 1200}, "grow": {"operator": "stack"}},
            {"name": "last", "model": {"num_layers": 2}, "until": {"tokens": 400}, **(last or {})},
        ],
    )


def stages_of(*arguments: object, **options: object) -> tuple[StagePlan, ...]:
    return make_plan(schedule(*arguments, **options)).staged.stages


# Growths that last for 600 tokens of their stage.
LASTING = {
    "mask": {"operator": "masked", "grow_tokens": 600},
    "rewarm": {"operator": "identity", "rewarm": {"tokens": 300}},
}


def grown_until(text: Path, grow: dict, until: dict) -> tuple[StagePlan, ...]:
    """A stage of 300 tokens, then a grown one that may end at any evaluation."""
    stages = [
        {"name": "small", "model": {"num_layers": 1}, "until": {"tokens": 300}},
        {"name": "full", "model": {"num_layers": 2}, "until": {**until, "tokens": CAP}, "grow": grow},
    ]
    training = {"evaluate": {"every": 200}, "lr_schedule": {"warmup": 0}}
    return make_plan(make_schedule(text, stages=stages, training=training, baseline=None)).staged.stages


# --- in the plan ----------------------------------------------------------------------------------


def test_the_key_names_the_rule_and_not_where_it_fires(tmp_path: Path) -> None:
    keys = {
        stages_of(tmp_path, until)[0].key
        for until in ({}, {"eval_loss": 2.0}, {"eval_loss": 2.1}, {"plateau": {"min_delta": 0.1, "patience": 2}})
    }
    assert len(keys) == 4
    assert stages_of(tmp_path, {"eval_loss": 2.0})[0].steps == CAP // 100


def test_how_often_it_is_evaluated_counts_only_where_that_ends_the_stage(tmp_path: Path) -> None:
    for until, same in (({}, True), ({"eval_loss": 2.0}, False)):
        often, seldom = (stages_of(tmp_path, until, evaluate={"every": every})[0] for every in (100, 400))
        assert (often.key == seldom.key) is same


def test_the_key_says_how_long_a_growth_holds_the_end_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stages that may end early alone: a key of before is that of a stage which could end under a half-open mask."""

    def keys() -> list[str]:
        untils = ({}, {"eval_loss": 100.0})
        grows = (LASTING["rewarm"], {"operator": "identity"})
        return [grown_until(tmp_path, grow, until)[1].key for grow in grows for until in untils]

    now = keys()
    monkeypatch.setattr(Growth, "duration", 0)
    assert [one == other for one, other in zip(now, keys(), strict=True)] == [True, False, True, True]


def test_the_run_decays_as_long_and_at_its_end_wherever_the_stage_ended(tmp_path: Path) -> None:
    """Planned: a warm-up of 100, constant to 2,560, decay to 3,200. The open stage ends 900 tokens early."""
    _, full, _ = stages_of(tmp_path, {"eval_loss": 2.0})
    moved = placed(full, CAP - 900, 7, 12345)
    assert (moved.start, moved.start_steps, moved.start_flops) == (700, 7, 12345)
    assert moved.key == full.key
    assert [(piece.start, piece.end) for piece in moved.rate] == [(0, 100), (100, 1660), (1660, 2300)]
    assert learning_rate.rate_at(moved.rate, 2300 - 320) == pytest.approx(learning_rate.rate_at(full.rate, 3200 - 320))


def test_a_rate_of_its_own_moves_as_it_is(tmp_path: Path) -> None:
    own = {"training": {"lr_schedule": {"kind": "cosine", "warmup": 100}}}
    last = stages_of(tmp_path, {"eval_loss": 2.0}, own)[2]
    moved = placed(last, last.start - 900, last.start_steps - 9, 0)
    assert [(piece.start, piece.end) for piece in moved.rate] == [(1900, 2000), (2000, 2300)]


@pytest.mark.parametrize(
    ("lr_schedule", "problem"),
    [
        ({"kind": "cosine"}, "found under a rate over the whole run that depends on its length from the start"),
        ({"decay": 2000}, "found a cap at 1600 tokens of the run, whose rate decays from 1200 on"),
    ],
)
def test_a_rate_that_could_not_make_up_for_it_is_refused(tmp_path: Path, lr_schedule: dict, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        stages_of(tmp_path, {"eval_loss": 2.0}, lr_schedule=lr_schedule)
    assert str(caught.value) == (
        f"stages[0].until: {problem}; expected lr_schedule wsd or constant, the decay after this stage, "
        f"or a lr_schedule of their own for all stages after it"
    )


def test_the_last_stage_may_end_early_under_any_rate(tmp_path: Path) -> None:
    last = {"until": {"eval_loss": 2.0, "tokens": 400}}
    assert stages_of(tmp_path, {}, last, lr_schedule={"kind": "cosine"})[2].until is not None


# --- in training ----------------------------------------------------------------------------------

RULES = {
    "target": {"eval_loss": 5.45},
    "plateau": {"plateau": {"min_delta": 0.5, "patience": 2}},
    "clock": {"seconds": "0.001s"},
    "both": {"all": [{"tokens": 900}, {"eval_loss": 5.45}]},
    "never": {"eval_loss": 0.001},
}


class Killed(BaseException):
    """Stands for the end of a process between two messages; real kills are in tests/end_to_end."""


@dataclass(frozen=True)
class Trained:
    text: Path
    folder: Path

    def records(self, rule: str, store: str = "calm") -> list[StageRecord]:
        opened = Store(open_folder(self.folder / f"{rule}-{store}"))
        return [opened.record(stage.key) for stage in self.stages(rule)]

    def stages(self, rule: str) -> tuple[StagePlan, ...]:
        return stages_of(self.text, RULES[rule])

    def sums(self, rule: str, store: str) -> list[str]:
        opened = Store(open_folder(self.folder / f"{rule}-{store}"))
        shards = Checkpoint(opened.finished_checkpoint(self.stages(rule)[-1].key)).manifest.shards
        return [shard.checksum for shard in shards]


def train_all(text: str, folder: str) -> None:
    for rule, until in RULES.items():
        stages = stages_of(Path(text), until)
        run_job(Job(stages, f"{folder}/{rule}-calm"), lambda *message: None)
    for name, grow in LASTING.items():
        job = Job(grown_until(Path(text), grow, {"eval_loss": 100.0}), f"{folder}/{name}")
        run_job(job, lambda *message: None)
    stages = stages_of(Path(text), RULES["target"])
    for count in range(1, 12, 2):
        said = []

        def send(kind: str, key: str, what: object, said: list = said, count: int = count) -> None:
            said.append(kind)
            if len([one for one in said if one in ("evaluated", "saved")]) == count:
                raise Killed

        try:
            run_job(Job(stages, f"{folder}/target-{count}"), send)
        except Killed:
            run_job(Job(stages, f"{folder}/target-{count}"), lambda *message: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, text = tmp_path_factory.mktemp("open-ends"), tmp_path_factory.mktemp("text")
    make_schedule(text)
    run_workers(1, train_all, str(text), str(folder), folder=folder / "processes")
    return Trained(text, folder)


@pytest.mark.end_to_end
@pytest.mark.parametrize("rule", ["target", "plateau", "clock", "both"])
def test_a_stage_ends_where_its_rule_fires_and_the_record_says_why(trained: Trained, rule: str) -> None:
    record = trained.records(rule)[0]
    assert (0 if rule == "clock" else 100) < record.duration < CAP  # on a slow machine one step takes the clock's time
    assert record.duration == record.steps * 100 == record.end.position
    assert record.eval_loss == record.end.loss
    began = {"target": "eval_loss: ", "plateau": "plateau: ", "clock": "seconds: ", "both": "tokens: "}[rule]
    assert record.stopped_by.startswith(began), record.stopped_by


@pytest.mark.end_to_end
def test_a_rule_that_never_fires_leaves_the_stage_to_its_cap(trained: Trained) -> None:
    record = trained.records("never")[0]
    assert record.duration == CAP
    assert record.stopped_by == "tokens: the stage has had 1,600 of 1,600"


@pytest.mark.end_to_end
@pytest.mark.parametrize("rule", RULES)
def test_the_next_stages_begin_where_it_ended(trained: Trained, rule: str) -> None:
    """Their first evaluation is there, they are as long as planned, and the run ends with its rate decayed."""
    first, full, last = trained.records(rule)
    assert full.evaluations[0].position == first.end.position
    assert full.evaluations[0].flops == first.end.flops
    assert (full.duration, last.duration) == (1200, 400)
    stage = where_it_begins(trained.stages(rule)[2], full)
    assert stage.end == last.end.position == first.duration + 1600
    assert learning_rate.rate_at(stage.rate, stage.end) == 0
    assert last.train[-1].lr == pytest.approx(learning_rate.rate_at(stage.rate, stage.end - 50))


@pytest.mark.end_to_end
@pytest.mark.parametrize("count", range(1, 12, 2))
def test_stopped_and_started_again_it_ends_in_the_same_place_with_the_same_bits(trained: Trained, count: int) -> None:
    calm, again = trained.records("target"), trained.records("target", str(count))
    assert [record.stopped_by for record in again] == [record.stopped_by for record in calm]
    assert [record.end.position for record in again] == [record.end.position for record in calm]
    assert trained.sums("target", str(count)) == trained.sums("target", "calm")


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", LASTING)
def test_a_stage_does_not_end_before_its_growth_is_over(trained: Trained, name: str) -> None:
    """The rule fires at once; the next stage would have neither the mask nor the rate."""
    stage = grown_until(trained.text, LASTING[name], {"eval_loss": 100.0})[1]
    record = Store(open_folder(trained.folder / name)).record(stage.key)
    assert record.stopped_by.startswith("eval_loss: ")
    assert (record.duration, record.evaluations[0].position) == (700, 300)  # evaluated at 400, 600, 800 and 1,000
