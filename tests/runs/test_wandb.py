"""W&B for real, offline: what the tracker was told stands in the files that W&B wrote."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import wandb

from factories import make_schedule
from playback import curved_records, play, play_stage
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.results.record import StageRecord
from raystage.results.report import SavingsPart
from raystage.results.savings import no_figure
from raystage.runs.wandb import WandbTracker
from raystage.runs.wandb_rows import artifact_name, evaluation_row, result_row, savings_summary, train_row
from wandb_reader import OfflineRun, read_run, read_runs, run_files

CONFIG = {"seed": 0, "training": {"optimizer": {"lr": 2e-3}}, "stages": [{"name": "small"}, {"name": "full"}]}
SAVINGS = SavingsPart(
    at_eval_loss=2.31,
    compute_saved=0.353,
    speedup=0.546,
    time_saved=None,
    flops_staged=5.05e12,
    flops_baseline=7.8e12,
    equal_loss_reached=True,
    verdict="saved 35.3 % of the compute (a 54.6 % speed-up)",
)
TRAIN_KEYS = {"train/loss", "train/lr", "train/gradient_norm", "train/tokens_per_second"}
STAGE_KEYS = {"stage/index", "stage/num_layers", "stage/num_params", "stage/num_workers", "stage/zero_stage"}
RESULT_KEYS = {"stage/eval_loss", "stage/flops", "stage/seconds", "stage/tokens", "stage/steps", "stage/reused"}
GROWTH_KEYS = {
    "eval_loss_before", "eval_loss_after", "loss_increase", "max_logit_difference", "mean_logit_difference", "seconds",
    "gradient_error_estimated", "exp_avg_norm_before", "exp_avg_norm_after", "bytes_read", "exact",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def private_wandb(tmp_path_factory: pytest.TempPathFactory) -> None:
    """W&B's caches and settings of its own, none of the person's who runs the tests."""
    home = tmp_path_factory.mktemp("wandb-home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(home))
        yield


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(make_schedule(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def records(plan: Plan) -> dict[str, StageRecord]:
    return curved_records(plan)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store of checkpoints") / "manifest.json"
    path.write_text("{}")
    return path


def make_tracker(plan: Plan, directory: Path, manifest: object, **options: object) -> WandbTracker:
    return WandbTracker(plan, CONFIG, lambda record: str(manifest), directory=directory, **options)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What raystage logged; wandb logs too, into files of its own."""
    return [record.getMessage() for record in caplog.records if record.name == "raystage.runs.wandb"]


def services() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "wandb" in child.name() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def told(plan, records, manifest, tmp_path_factory) -> dict[str, OfflineRun]:
    """One whole schedule, told once: the runs that W&B wrote, by the name of the run."""
    directory = tmp_path_factory.mktemp("told")
    tracker = make_tracker(plan, directory, manifest)
    play(tracker, plan, records)
    tracker.savings(SAVINGS)
    tracker.ended(None)
    assert not services()
    return {name.removeprefix("tiny-"): run for name, run in read_runs(directory).items()}


# --- what W&B holds ---------------------------------------------------------------------------


def test_one_wandb_run_per_run_of_the_plan(told, plan):
    assert set(told) == {run.name for run in plan.runs()}
    assert {run.group for run in told.values()} == {"tiny"}
    assert {run.project for run in told.values()} == {"raystage"}
    assert {name: run.job_type for name, run in told.items()} == {
        run.name: "staged" if run == plan.staged else "baseline" for run in plan.runs()
    }
    assert {run.exit_code for run in told.values()} == {0}


def test_config_is_the_schedule_with_names_and_keys(told, plan):
    config = told["staged"].config
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert (config["name"], config["run"]) == ("tiny", "staged")
    assert config["stage_keys"] == {stage.name: stage.key for stage in plan.staged.stages}


def test_tokens_are_the_axis_of_every_curve(told):
    for run in told.values():
        assert {"tokens", "flops"} <= set(run.metrics)
        assert run.step_metrics == dict.fromkeys(("train/*", "eval/*", "stage/*", "growth/*"), "tokens")
        assert all({"tokens", "flops"} <= set(row) for row in run.history)


def test_curves_are_the_points_of_all_stages_one_after_the_other(told, plan, records):
    for run in plan.runs():
        chain = [records[stage.key] for stage in run.stages]
        train = [point for record in chain for point in record.train]
        evaluations = [point for record in chain for point in record.evaluations]
        logged = told[run.name]
        assert logged.curve("train/loss") == [(point.position, point.loss) for point in train]
        assert logged.curve("train/loss", "flops") == [(point.flops, point.loss) for point in train]
        assert logged.curve("train/lr") == [(point.position, point.lr) for point in train]
        assert logged.curve("train/gradient_norm") == [(point.position, point.gradient_norm) for point in train]
        assert logged.curve("train/tokens_per_second") == [(point.position, 1234.0) for point in train]
        assert logged.curve("eval/loss") == [(point.position, point.loss) for point in evaluations]
        assert logged.curve("eval/perplexity") == [
            (one.position, pytest.approx(math.exp(one.loss))) for one in evaluations
        ]
        assert logged.curve("eval/accuracy") == [(one.position, one.accuracy) for one in evaluations]
        assert not logged.curve("train/mfu")


def test_a_reused_stage_has_its_whole_curve_in_every_run_that_shares_it(told, plan, records):
    first, second = plan.baselines[0], plan.baselines[1]
    trunk = first.stages[0]
    assert trunk.key == second.stages[0].key
    shared = [(point.position, point.loss) for point in records[trunk.key].train]
    assert told[first.name].curve("train/loss")[: len(shared)] == shared
    assert told[second.name].curve("train/loss")[: len(shared)] == shared
    assert [value for _, value in told[first.name].curve("stage/reused")] == [0, 0]
    assert told[second.name].curve("stage/reused")[0] == (trunk.end, 1)


def test_growth_stands_at_the_first_token_of_its_stage(told, plan, records):
    stage = plan.staged.stages[1]
    growth = records[stage.key].growth
    rows = [row for row in told["staged"].history if "growth/seconds" in row]
    assert [row["tokens"] for row in rows] == [stage.start]
    assert rows[0]["flops"] == stage.start_flops
    assert {key for key in rows[0] if key.startswith("growth/")} == {f"growth/{key}" for key in GROWTH_KEYS}
    assert rows[0]["growth/eval_loss_before"] == growth.certificate.eval_loss_before
    assert rows[0]["growth/eval_loss_after"] == growth.certificate.eval_loss_after
    assert rows[0]["growth/loss_increase"] == 0.5
    assert rows[0]["growth/max_logit_difference"] == growth.certificate.max_logit_difference
    assert rows[0]["growth/seconds"] == growth.seconds
    assert (rows[0]["growth/exp_avg_norm_before"], rows[0]["growth/exp_avg_norm_after"]) == (0.5, 0.75)


def test_how_far_copies_have_parted_comes_when_it_is_known(told, plan, records):
    stage = plan.staged.stages[1]
    rows = [row for row in told["staged"].history if "growth/twin_steps" in row]
    steps = records[stage.key].growth.certificate.twin_steps
    assert [row["tokens"] for row in rows] == [stage.start + steps * stage.training.global_batch_tokens]
    assert (rows[0]["growth/twin_steps"], rows[0]["growth/twin_distance"]) == (steps, 0.02)


def test_stages_stand_at_their_first_and_last_token(told, plan, records):
    rows = [row for row in told["staged"].history if "stage/index" in row]
    ends = [tokens for stage in plan.staged.stages for tokens in (stage.start, stage.end)]
    assert [row["tokens"] for row in rows] == ends
    assert [row["stage/index"] for row in rows] == [0, 0, 1, 1]
    assert [row["stage/num_layers"] for row in rows] == [2, 2, 4, 4]
    for row, stage in zip(rows[1::2], plan.staged.stages, strict=True):
        assert set(row) >= STAGE_KEYS | RESULT_KEYS
        assert row["stage/eval_loss"] == records[stage.key].eval_loss
        assert row["stage/flops"] == stage.flops
        assert row["flops"] == stage.end_flops


def test_summary_of_the_staged_run_holds_the_savings(told):
    summary = told["staged"].summary
    expected = {f"savings/{field}": value for field, value in to_json(SAVINGS).items() if value is not None}
    assert {key: value for key, value in summary.items() if key.startswith("savings/")} == expected
    assert not any(key.startswith("savings/") for key in told["baseline-1000"].summary)


def test_summary_of_every_run_holds_how_it_ended(told, plan, records):
    for run in plan.runs():
        end = records[run.stages[-1].key].end
        summary = told[run.name].summary
        assert [summary[f"eval/{name}"] for name in ("loss", "accuracy")] == [end.loss, end.accuracy]
        assert summary["eval/perplexity"] == pytest.approx(math.exp(end.loss))


def test_checkpoints_are_artifacts_that_name_their_parent(told, plan, manifest):
    small, full = told["staged"].artifacts
    assert (small.name, full.name) == ("tiny-staged-small", "tiny-staged-full")
    assert {small.type, full.type} == {"checkpoint"}
    assert full.references == {"manifest.json": manifest.as_uri()}
    first, second = plan.staged.stages
    assert (small.metadata["key"], small.metadata["parent_key"]) == (first.key, None)
    assert (full.metadata["key"], full.metadata["parent_key"]) == (second.key, first.key)
    assert full.metadata["parent_artifact"] == "tiny-staged-small"
    assert (full.metadata["num_params"], full.metadata["tokens"]) == (second.num_params, second.duration)
    assert [len(run.artifacts) for run in told.values()] == [len(run.config["stage_keys"]) for run in told.values()]


# --- other ways to track ----------------------------------------------------------------------


def test_disabled_writes_nothing_and_starts_nothing(plan, records, manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = WandbTracker(plan, CONFIG, lambda record: str(manifest), mode="disabled")
    play(tracker, plan, records)
    tracker.savings(SAVINGS)
    assert not services()
    tracker.ended(None)
    assert list(tmp_path.iterdir()) == []


def test_the_working_directory_is_where_it_writes_by_default(plan, records, manifest, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    tracker = make_tracker(plan, None, manifest)
    play(tracker, plan, records)
    tracker.ended(None)
    assert len(run_files(tmp_path)) == len(plan.runs())
    assert capfd.readouterr() == ("", "")


def test_the_runs_of_a_trial_go_by_the_sweeps_group(plan, records, manifest, tmp_path):
    tracker = make_tracker(plan, tmp_path, manifest, group="when-to-grow", job_type="trial", project="mine")
    play(tracker, plan, records)
    tracker.ended(None)
    runs = read_runs(tmp_path)
    assert {(run.group, run.project) for run in runs.values()} == {("when-to-grow", "mine")}
    assert {run.job_type for run in runs.values()} == {"trial", "baseline"}


def test_a_failed_run_is_marked_as_failed(plan, records, manifest, tmp_path):
    tracker = make_tracker(plan, tmp_path, manifest)
    stage = plan.staged.stages[0]
    tracker.run_started(plan.staged)
    play_stage(tracker, plan.staged, stage, records[stage.key])
    tracker.ended(RuntimeError("it failed"))
    assert [read_run(file).exit_code for file in run_files(tmp_path)] == [1]
    assert not services()


def test_a_later_attempt_goes_on_under_the_same_id(plan, records, manifest, tmp_path):
    first = make_tracker(plan, tmp_path / "first", manifest)
    first.run_started(plan.staged)
    first.ended(RuntimeError("it failed"))
    second = make_tracker(plan, tmp_path / "second", manifest, run_ids={"staged": first.run_ids["staged"]})
    play(second, plan, records)
    second.ended(None)
    assert second.run_ids["staged"] == first.run_ids["staged"]
    assert read_runs(tmp_path / "second")["tiny-staged"].run_id == first.run_ids["staged"]
    assert set(second.run_ids) == {run.name for run in plan.runs()}
    assert second.run_ids["baseline-1000"] != first.run_ids["baseline-1000"]


def test_what_workers_train_again_after_a_restart_is_logged_once(plan, records, manifest, tmp_path):
    stage = plan.staged.stages[0]
    record = records[stage.key]
    tracker = make_tracker(plan, tmp_path, manifest)
    tracker.run_started(plan.staged)
    tracker.stage_started(plan.staged, stage, reused=False)
    for point in record.train[:3]:
        tracker.trained(plan.staged, stage, point)
    tracker.restarted(plan.staged, stage, "a worker died")
    for point in record.train[1:]:
        tracker.trained(plan.staged, stage, point)
    tracker.ended(None)
    logged = read_run(run_files(tmp_path)[0]).curve("train/loss")
    assert logged == [(point.position, point.loss) for point in record.train]


def test_a_run_of_someone_else_in_the_process_stays_alive(plan, records, manifest, tmp_path):
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    other = wandb.init(mode="offline", dir=tmp_path / "other", reinit="create_new", settings=settings)
    tracker = make_tracker(plan, tmp_path / "ours", manifest)
    play(tracker, plan, records)
    tracker.ended(None)
    other.log({"loss": 1.0})
    other.finish()
    wandb.teardown()
    assert read_run(run_files(tmp_path / "other")[0]).curve("loss", "_step") == [(0, 1.0)]


@pytest.mark.parametrize("place", ["s3://bucket/stages/manifest.json", "/no/such/folder/manifest.json"])
def test_a_checkpoint_that_wandb_cannot_refer_to_is_noted(plan, records, tmp_path, place, caplog):
    tracker = make_tracker(plan, tmp_path, place)
    stage = plan.staged.stages[0]
    tracker.run_started(plan.staged)
    play_stage(tracker, plan.staged, stage, records[stage.key])
    tracker.ended(None)
    artifact = read_run(run_files(tmp_path)[0]).artifacts[0]
    assert artifact.metadata["manifest"].endswith(place)
    assert artifact.references in ({"checkpoint.json": ""}, {"manifest.json": place})
    assert not warned(caplog)


# --- trouble ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [wandb.errors.CommError("no server"), OSError("disk full"), ValueError("refused")])
def test_a_wandb_that_cannot_start_is_one_warning(plan, records, manifest, tmp_path, monkeypatch, caplog, error):
    def fail(**arguments: object) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", fail)
    tracker = make_tracker(plan, tmp_path, manifest)
    play(tracker, plan, records)
    tracker.savings(SAVINGS)
    tracker.ended(None)
    assert len(warned(caplog)) == 1
    assert str(error) in warned(caplog)[0]
    assert not services()


DYING_SERVICE = """
import sys
from pathlib import Path

import psutil
from factories import make_schedule
from playback import curved_records, play_stage

from raystage.planning.build import make_plan
from raystage.results.report import SavingsPart
from raystage.results.savings import no_figure
from raystage.runs.wandb import WandbTracker

folder, next_call, deaths = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plan = make_plan(make_schedule(folder))
tracker = WandbTracker(plan, {}, lambda record: str(folder), directory=folder)
baselines = [run for run in plan.runs() if run is not plan.staged]
tracker.run_started(plan.staged)
for _ in range(deaths):
    for service in psutil.Process().children():
        service.kill()
        service.wait()
    if next_call == "a row":
        tracker.stage_started(plan.staged, plan.staged.stages[0], reused=False)
for run in baselines:
    tracker.run_started(run)
    tracker.run_finished(run, ())
for stage in plan.staged.stages:
    play_stage(tracker, plan.staged, stage, curved_records(plan)[stage.key])
tracker.savings(SavingsPart(**vars(no_figure("none"))))
tracker.ended(None)
print("trained on, children:", psutil.Process().children())
"""


def with_dying_service(folder: Path, next_call: str, deaths: int) -> str:
    """What is said. In a process of its own: wandb never waits for its dead service, of which Python warns later."""
    command = [sys.executable, "-c", DYING_SERVICE, str(folder), next_call, str(deaths)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert child.stdout == "trained on, children: []\n"
    return child.stderr


@pytest.mark.parametrize("next_call", ["a row", "a new run"])
def test_a_service_that_dies_is_started_once_more_and_gets_all_that_follows(tmp_path, next_call, told):
    """A signal to every process of a job ends it, while the workers still save."""
    assert with_dying_service(tmp_path, next_call, deaths=1) == ""
    finished = [run for file in run_files(tmp_path) if (run := read_run(file)).exit_code == 0]
    assert sorted(run.job_type for run in finished).count("staged") == 1
    assert len(finished) == len({run.run_id for run in finished}) > 1
    (staged,) = (run for run in finished if run.job_type == "staged")
    assert len(staged.curve("train/loss")) == len(told["staged"].curve("train/loss"))


def test_a_service_that_dies_again_is_one_warning(tmp_path):
    said = with_dying_service(tmp_path, "a row", deaths=2)
    assert said.startswith("W&B stops here, training continues without it: ")
    assert said.count("\n") == 1


def test_online_without_a_key_is_one_warning(plan, records, manifest, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tracker = make_tracker(plan, tmp_path, manifest, mode="online")
    play(tracker, plan, records)
    tracker.ended(None)
    assert len(warned(caplog)) == 1
    assert "wandb login" in warned(caplog)[0]
    assert not services()


# --- online, with a stand-in for W&B ----------------------------------------------------------


class FakeRun:
    """Remembers what it was told. resumed, summary: as W&B gives them for a run it already has."""

    def __init__(self, resumed: bool, tokens: int) -> None:
        self.resumed, self.summary = resumed, {"tokens": tokens} if resumed else {}
        self.rows: list[dict] = []
        self.used: list[str] = []

    def define_metric(self, *arguments: object, **options: object) -> None:
        pass

    def log(self, row: dict) -> None:
        self.rows.append(row)

    def log_artifact(self, artifact: wandb.Artifact) -> SimpleNamespace:
        return SimpleNamespace(name=artifact.name, wait=lambda timeout: artifact)

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        self.used.append(artifact.name)

    def finish(self, exit_code: int) -> None:
        pass


@pytest.fixture
def fake_wandb(monkeypatch):
    """Instead of wandb.init, runs by name; those with an id for resuming are known up to `tokens`."""
    fake = SimpleNamespace(runs={}, arguments={}, tokens=0)

    def init(**arguments: object) -> FakeRun:
        fake.arguments[arguments["name"]] = arguments
        fake.runs[arguments["name"]] = FakeRun(arguments["resume"] is not None, fake.tokens)
        return fake.runs[arguments["name"]]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda settings: SimpleNamespace(most_recent_active_run=None))
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    return fake


def test_online_lineage_names_the_parent_of_each_stage(plan, records, manifest, fake_wandb):
    tracker = make_tracker(plan, None, manifest, mode="online")
    play(tracker, plan, records)
    assert fake_wandb.runs["tiny-staged"].used == ["tiny-staged-small"]
    assert fake_wandb.arguments["tiny-staged"]["resume"] is None


def test_online_a_parent_that_cannot_be_declared_is_a_warning_and_no_more(
    plan, records, manifest, fake_wandb, monkeypatch, caplog
):
    def refuse(run: FakeRun, artifact: wandb.Artifact) -> None:
        raise wandb.errors.CommError("not yet")

    monkeypatch.setattr(FakeRun, "use_artifact", refuse)
    tracker = make_tracker(plan, None, manifest, mode="online")
    play(tracker, plan, records)
    assert "tiny-staged-small: not yet" in warned(caplog)[0]
    staged = [row for row in fake_wandb.runs["tiny-staged"].rows if "train/loss" in row]
    assert len(staged) == sum(len(records[stage.key].train) for stage in plan.staged.stages)


def test_online_a_resumed_run_gets_only_what_it_lacks(plan, records, manifest, fake_wandb):
    stage = plan.staged.stages[1]
    fake_wandb.tokens = records[stage.key].train[1].position
    tracker = make_tracker(plan, None, manifest, mode="online", run_ids={"staged": "abc"})
    play(tracker, plan, records, reused={plan.staged.stages[0].key})
    arguments, rows = fake_wandb.arguments["tiny-staged"], fake_wandb.runs["tiny-staged"].rows
    assert (arguments["id"], arguments["resume"]) == ("abc", "allow")
    assert min(row["tokens"] for row in rows) == fake_wandb.tokens
    assert max(row["tokens"] for row in rows) == stage.end
    assert fake_wandb.arguments["tiny-baseline-1000"]["resume"] is None


# --- rows -------------------------------------------------------------------------------------


def test_mfu_is_logged_where_it_is_known(plan, records):
    point = records[plan.staged.stages[0].key].train[0]
    assert set(train_row(point, "tokens")) == {"tokens", "flops"} | TRAIN_KEYS
    assert train_row(replace(point, mfu=0.4), "tokens")["train/mfu"] == 0.4


def test_metrics_of_the_schedule_stand_beside_the_loss(plan, records):
    point = replace(records[plan.staged.stages[0].key].end, metrics={"exact_match": 0.25, "f1/10": 0.5})
    row = evaluation_row(point, plan.staged.stages[0])
    assert (row["eval/exact_match"], row["eval/f1/10"]) == (0.25, 0.5)


def test_accuracy_is_left_out_where_nobody_counted(plan, records):
    point = records[plan.staged.stages[0].key].end
    quality = {"eval/loss", "eval/perplexity"}
    stage = plan.staged.stages[0]
    assert set(evaluation_row(point, stage)) == {"tokens", "flops", "eval/accuracy"} | quality
    assert set(evaluation_row(replace(point, accuracy=None), stage)) == {"tokens", "flops"} | quality


def test_a_result_row_holds_the_stages_own_figures(plan, records):
    stage = plan.staged.stages[1]
    row = result_row(plan.staged, stage, records[stage.key], reused=True)
    assert (row["tokens"], row["stage/tokens"]) == (stage.end, stage.duration)
    assert (row["flops"], row["stage/flops"]) == (stage.end_flops, stage.flops)
    assert row["stage/reused"] == 1


def test_savings_without_a_figure_keep_the_verdict():
    summary = savings_summary(SavingsPart(**vars(no_figure("none"))))
    assert summary == {
        "savings/equal_loss_reached": False, "savings/verdict": "none", "savings/at_equal_flops": "",
        "savings/is_judged_on_half": False,
    }  # fmt: skip


def test_artifact_names_are_such_as_wandb_takes(plan):
    run, stage = plan.staged, plan.staged.stages[0]
    assert artifact_name("my run/é", run, stage) == "my-run---staged-small"
    assert len(artifact_name("x" * 300, run, stage)) == 128
