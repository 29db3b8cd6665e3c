"""What a sweep's file says, and what is said of what is wrong with it."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from raystage.cli.main import main
from raystage.errors import InputError
from raystage.sweeps.config import load
from raystage.sweeps.scheduler import Extent
from raystage.sweeps.trials import plan_sweep
from sweeps import make_sweep, write_sweep

LAG = {"name": "lag", "after_growth": {"tokens": "50K", "keep": 2}}


def test_what_a_short_file_means(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    assert (sweep.search.algorithm, sweep.search.max_concurrent, sweep.search.seed) == ("grid", 1, 0)
    assert sweep.scheduler.name == "none"
    assert [(one.metric, one.better) for one in sweep.objective] == [("eval_loss", "min")]
    assert sweep.constraints.equal_flops is None
    assert sweep.base["name"] == "tiny"
    assert [one.path for one in sweep.points.dimensions] == ["stages[0].until.tokens", "stages[2].grow.operator"]


def test_the_schedule_is_looked_for_beside_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sweep(tmp_path)
    monkeypatch.chdir("/")
    assert load(os.path.relpath(path)).schedule_file.resolve() == (tmp_path / "tiny.yaml").resolve()


def test_a_whole_file(tmp_path: Path) -> None:
    sweep = make_sweep(
        tmp_path,
        search={"algorithm": "optuna", "num_trials": "1K", "max_concurrent": 4, "seed": 3},
        scheduler={"name": "asha", "grace": "250K", "reduction_factor": 3},
        objective=[
            {"metric": "compute_saved", "mode": "max"},
            {"metric": "eval_loss_at_flops", "at": "1e12"},
            {"metric": "seconds_to_loss", "target": 1.5},
        ],
        constraints={"equal_flops": {"flops": "1e9", "stage": "middle"}},
    )
    assert sweep.search.num_trials == 1000
    assert sweep.scheduler.grace == Extent(tokens=250_000)
    assert [one.better for one in sweep.objective] == ["max", "min", "min"]
    assert sweep.constraints.equal_flops.flops == 10**9
    assert sweep.needs_baselines


@pytest.mark.parametrize(("given", "wanted"), [(True, True), (False, False), ({}, True)])
def test_equal_flops_are_asked_for_by_a_word(tmp_path: Path, given: object, wanted: bool) -> None:
    sweep = make_sweep(tmp_path, constraints={"equal_flops": given})
    assert (sweep.constraints.equal_flops is not None) is wanted


def test_grace_counts_flops_where_it_says_so(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, scheduler={"name": "asha", "grace": {"flops": "1T"}})
    assert sweep.scheduler.grace == Extent(flops=10**12)


def test_overrides_are_of_the_sweeps_own_keys(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    sweep = load(path, ("search={algorithm: random, num_trials: 5}", "objective.metric=compute_saved"))
    assert sweep.search.num_trials == 5
    assert sweep.objective[0].metric == "compute_saved"
    sweep = load(path, ("space={seed: {grid: [1, 2]}}",))
    assert [one.path for one in sweep.points.dimensions] == ["seed"]


def test_overrides_after_schedule_are_of_the_schedule(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    sweep = load(path, ("schedule.model.hidden_size=16", "name=other"))
    assert (sweep.base["model"]["hidden_size"], sweep.name) == (16, "other")
    assert {trial.plan.staged.stages[0].shape.hidden_size for trial in plan_sweep(sweep).trials} == {16}
    with pytest.raises(InputError, match=r"tiny.yaml: model.hidden_sise: unknown key"):
        load(path, ("schedule.model.hidden_sise=16",))


# Sections of a sweep, and what is said of them.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"serch": {}}, "serch: unknown key; did you mean 'search'?"),
    ({"num_trials": 5}, "num_trials: unknown key here; it belongs in search"),
    ({"space": {}}, "space: found 0 entries; expected at least one"),
    ({"space": {"seed": {"gird": [1]}}}, "space.seed.gird: unknown key; did you mean 'grid'?"),
    ({"space": {"seed": {"grid": 1}}}, "space.seed.grid: found 1; expected a list"),
    ({"space": {"seed": {"grid": []}}}, "space.seed.grid: found 0 entries; expected at least one"),
    ({"space": {"seed": [1, 2]}}, "space.seed: found [1, 2]; expected a mapping of keys to values"),
    ({"space": {"seed": {}}},
     "space.seed: found nothing; expected exactly one of grid, choice, uniform, loguniform, integer, log_integer"),
    ({"space": {"seed": {"grid": [1], "choice": [1]}}}, "space.seed: found grid and choice; expected exactly one of "
     "grid, choice, uniform, loguniform, integer, log_integer"),
    ({"space": {"seed": {"grid": [1, 2, 1]}}}, "space.seed: found 1 a second time; expected each value once"),
    ({"space": {"seed": {"integer": [1, 2, 3]}}}, "space.seed.integer: found 3 entries; expected 2"),
    ({"space": {"seed": {"integer": [1, 2.5]}}},
     "space.seed.integer[1]: found 2.5; expected a whole number such as 500000, 500K or 1.5B"),
    ({"space": {"seed": {"integer": [5, 5]}}}, "space.seed: found 5 to 5; expected the lower end first"),
    ({"space": {"training.optimizer.lr": {"loguniform": [0, 1]}}},
     "space.training.optimizer.lr: found 0; expected more than 0 under loguniform"),
    ({"space": {"seed": {"uniform": ["a", 1]}}},
     "space.seed.uniform[0]: found 'a'; expected a number such as 500000, 500K or 1.5B"),
    ({"search": {"algorithm": "rand"}},
     "search.algorithm: found 'rand'; expected 'grid', 'random' or 'optuna'; did you mean 'random'?"),
    ({"search": {"algorithm": "random"}},
     "search.num_trials: missing; expected how many trials, for algorithm: random"),
    ({"search": {"num_trials": 3}},
     "search.num_trials: found 3, but the grid has 4 points; expected 4, or another algorithm"),
    ({"search": {"max_concurrent": 0}}, "search.max_concurrent: found 0; expected more than 0"),
    ({"scheduler": {"name": "asha"}},
     "scheduler: found no grace, which asha needs; expected for example grace: 250K"),
    ({"scheduler": {"name": "lag"}}, "scheduler: found no after_growth, which lag needs; expected for example "
     "after_growth: {tokens: 50K, keep: 2}"),
    ({"scheduler": {"grace": 5}}, "scheduler: found grace with name: none; expected it with name: asha alone"),
    ({"scheduler": {**LAG, "grace": 5}}, "scheduler: found grace with name: lag; expected it with name: asha alone"),
    ({"scheduler": {**LAG, "after_growth": {"tokens": 5}}},
     "scheduler.after_growth.keep: missing; expected for example keep: 2"),
    ({"scheduler": {**LAG, "after_growth": {"keep": 2}}},
     "scheduler.after_growth: found nothing; expected exactly one of tokens, samples"),
    ({"scheduler": {"name": "asha", "grace": {"tokens": 5, "flops": 5}}},
     "scheduler.grace: found tokens and flops; expected exactly one of tokens, samples, flops"),
    ({"scheduler": {"name": "asha", "grace": 5, "reduction_factor": 1}},
     "scheduler.reduction_factor: found 1; expected more than 1"),
    ({"objective": {"metric": "eval_los"}}, "objective.metric: found 'eval_los'; expected 'eval_loss', "
     "'compute_saved', 'flops_to_loss', 'seconds_to_loss' or 'eval_loss_at_flops'; did you mean 'eval_loss'?"),
    ({"objective": {"mode": "max"}}, "objective: found mode: max, but eval_loss is better the lower it is; "
     "expected mode: min"),
    ({"objective": {"metric": "flops_to_loss"}},
     "objective: found no target, which flops_to_loss needs; expected for example target: 1.5"),
    ({"objective": {"metric": "eval_loss", "at": 5}},
     "objective: found at, which eval_loss takes none of; expected it with eval_loss_at_flops"),
    ({"objective": []}, "objective: found 0 entries; expected at least one"),
    ({"objective": [{}, {"metric": "compute_saved"}, {}]},
     "objective[2]: found eval_loss a second time; expected each once"),
    ({"constraints": {"equal_flops": {"stage": "last"}}},
     "constraints.equal_flops.stage: found 'last'; expected one of small, middle, full"),
    ({"constraints": {"equal_flops": True}, "space": {"stages[2]": {"choice": ["present", "absent"]}}},
     "constraints.equal_flops.stage: full takes what is left of the FLOPs, but may be absent; "
     "expected a stage that is always there"),
    ({"constraints": {"equal_flops": {"stage": "middle"}}, "space": {"stages[1].until": {"grid": [{"steps": 5}]}}},
     "space.stages[1].until: the length of middle follows from constraints.equal_flops; expected another path, "
     "or another constraints.equal_flops.stage"),
    ({"constraints": {"equal_flops": 5}},
     "constraints.equal_flops: found 5; expected a mapping of keys to values"),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_is_wrong_is_said(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    path = write_sweep(tmp_path, **{key: value for key, value in sections.items() if key != "space"})
    if "space" in sections:
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**content, "space": sections["space"]}))
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_sweep_without_its_schedule(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    (tmp_path / "tiny.yaml").unlink()
    with pytest.raises(InputError, match=r"sweep.yaml: schedule: found 'tiny.yaml', but there is no file /.*tiny.yaml"):
        load(path)


def test_what_is_wrong_in_the_schedule_is_said_of_the_schedule(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    (tmp_path / "tiny.yaml").write_text("name: tiny\nstage: []\n")
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value) == f"{tmp_path / 'tiny.yaml'}: stage: unknown key; did you mean 'stages'?"


def test_a_sweep_of_a_sweep_is_refused(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    with pytest.raises(InputError, match=r"sweep\.yaml: schedule: is a sweep itself; expected a schedule"):
        load(path, ("schedule=sweep.yaml",))


def test_compute_saved_asks_for_a_baseline(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, "seed: {grid: [1, 2]}", "baseline=null", objective={"metric": "compute_saved"})
    with pytest.raises(InputError) as caught:
        load(path)
    message = "found compute_saved, but tiny.yaml has no baseline to hold trials against; expected one there"
    assert str(caught.value) == f"{path}: objective.metric: {message}"


def test_a_grid_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    space = "\n".join(f"stages[{index}].until.tokens: {{grid: {list(range(1, 60))}}}" for index in range(3))
    with pytest.raises(InputError, match="space: found a grid of more than 10,000 points; expected fewer"):
        make_sweep(tmp_path, space)


# --- the commands for it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "file", "message"),
    [
        ("run", "sweep.yaml", "found a sweep; expected a schedule, or the command: raystage sweep"),
        ("sweep", "tiny.yaml", "found a schedule; expected a sweep, or the command: raystage run"),
    ],
)
def test_the_command_for_the_other_kind_of_file_is_named(tmp_path: Path, command: str, file: str, message: str) -> None:
    write_sweep(tmp_path)
    path = tmp_path / file
    done = CliRunner().invoke(main, [command, str(path), "--store", str(tmp_path / "store")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"raystage: {path}: {message} {path}\n"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["sweep.yaml", "--store", "elsewhere"], "sweep"),
        (["--set", "search.max_concurrent=1", "sweep.yaml"], "sweep"),
        (["tiny.yaml", "--json"], "run"),
        (["missing.yaml"], "run"),
        (["--help"], "run"),
    ],
)
def test_the_script_for_jobs_takes_both_kinds_of_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], command: str
) -> None:
    write_sweep(tmp_path)
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(Path(__file__).parents[2] / "jobs/run.py"))
    assert script["command"](arguments) == command
