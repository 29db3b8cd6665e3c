"""A run with all that is told of it: how it begins, and how its end is told, whatever the end is."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from playback import curved_records
from raystage.config.schedule import Schedule
from raystage.errors import StageFailed
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.runs.events import RunCallback
from raystage.runs.session import RunSession, Tracking
from raystage.storage.store import Store
from raystage.storage.stored_files import RUN_FILE, STATUS_FILE

COMMAND = "raystage run tiny.yaml"


class Witness(RunCallback):
    def __init__(self, fails: BaseException | None = None) -> None:
        self.finished: list[str] = []
        self.ends: list[BaseException | None] = []
        self._fails = fails

    def stage_finished(self, run: object, stage: StagePlan, record: object, reused: bool) -> None:
        self.finished.append(stage.name)

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)
        if self._fails is not None:
            raise self._fails


@pytest.fixture
def schedule(tmp_path: Path) -> Schedule:
    (tmp_path / "text").mkdir()
    return make_schedule(tmp_path / "text", baseline=None)


@pytest.fixture
def plan(schedule: Schedule) -> Plan:
    return make_plan(schedule)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


@pytest.fixture
def finished(plan: Plan, store: Store) -> Store:
    for record in curved_records(plan).values():
        store.commit_record(record)
    return store


def files_of(store: Store, plan: Plan) -> tuple[str, str]:
    """The state in status.json, and the log without times."""
    folder = store.run_folder(plan.name)
    return store.read_run(plan.name, STATUS_FILE)["state"], folder.read("run.log").decode()


def test_all_callbacks_are_told_of_a_run_and_its_end(plan: Plan, schedule: Schedule, finished: Store) -> None:
    witness = Witness()
    with RunSession(plan, schedule, finished, command=COMMAND, draws=False) as session:
        report = session.run([witness])
        assert witness.ends == []
    assert witness.finished == [stage.name for stage in plan.staged.stages]
    assert witness.ends == [None]
    assert report == finished.run_report(plan.name)
    state, log = files_of(finished, plan)
    assert state == "FINISHED"
    assert "] finished\n" in log
    assert set(session.finished) == set(plan.stages_by_key())


@pytest.mark.parametrize(
    ("error", "state", "word"),
    [
        (StageFailed("it failed"), "ERRORED", "failed: it failed"),
        (KeyboardInterrupt(), "ABORTED", "interrupted"),
        (ZeroDivisionError("a mistake"), "ERRORED", "failed: a mistake"),
    ],
)
def test_an_error_is_told_to_all_and_says_what_to_do_next(
    plan: Plan, schedule: Schedule, store: Store, error: BaseException, state: str, word: str
) -> None:
    witness = Witness()

    class Fails(RunCallback):
        def run_started(self, run: object) -> None:
            raise error

    session = RunSession(plan, schedule, store, command=COMMAND, draws=False)
    with pytest.raises(type(error)), session:
        session.run([witness, Fails()])
    assert witness.ends == [error]
    assert error.__notes__ == [f"to continue: {COMMAND}", f"log: {session.invocation.log}"]
    assert store.read_run(plan.name, RUN_FILE)["state"] == state
    status, log = files_of(store, plan)
    assert status == state
    assert f"] {word}\n" in log


def test_a_callback_that_fails_at_the_end_keeps_the_others_from_nothing(
    plan: Plan, schedule: Schedule, finished: Store
) -> None:
    first, second = Witness(), Witness(KeyboardInterrupt())
    session = RunSession(plan, schedule, finished, command=COMMAND, draws=False)
    with pytest.raises(KeyboardInterrupt), session:
        session.run([first, second])
    assert (len(first.ends), len(second.ends)) == (1, 1)
    assert files_of(finished, plan)[0] == "FINISHED"


def test_what_was_finished_before_is_not_told_to_wandb_again(
    plan: Plan, schedule: Schedule, finished: Store, tmp_path: Path
) -> None:
    tracking = Tracking("offline", str(tmp_path / "wandb-of-run"))
    with RunSession(plan, schedule, finished, command=COMMAND, draws=False) as session:
        session.run()
    with RunSession(plan, schedule, finished, command=COMMAND, draws=False, tracking=tracking) as session:
        session.run()
    assert not Path(tracking.folder).exists()
