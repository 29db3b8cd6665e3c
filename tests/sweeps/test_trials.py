"""The trials of a sweep before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.models.shape import flops_per_token
from raystage.planning.build import make_plan
from raystage.sweeps.config import load
from raystage.sweeps.trials import SweepPlan, plan_sweep
from sweeps import SPACE, make_sweep, write_sweep

LENGTHS = "stages[0].until.tokens: {grid: [400, 800, 1200]}"


def planned(folder: Path, space: str = SPACE, *changes: str, **sections: object) -> SweepPlan:
    return plan_sweep(make_sweep(folder, space, *changes, **sections))


def test_a_trial_is_its_config_and_a_schedule_of_its_own(tmp_path: Path) -> None:
    trials = planned(tmp_path).trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    third = trials[2]
    assert third.config == {"stages[0].until.tokens": 800, "stages[2].grow.operator": "stack"}
    assert third.content["name"] == third.plan.name == "search-2"
    assert make_plan(parse(third.content, tmp_path)).staged == third.plan.staged


def test_random_trials_are_different_and_the_same_for_a_seed(tmp_path: Path) -> None:
    search = {"algorithm": "random", "num_trials": 4}
    first, again = planned(tmp_path, search=search), planned(tmp_path, search=search)
    assert [trial.config for trial in first.trials] == [trial.config for trial in again.trials]
    assert len({repr(trial.config) for trial in first.trials}) == 4
    other = planned(tmp_path, search={**search, "seed": 1})
    assert [trial.config for trial in other.trials] != [trial.config for trial in first.trials]


def test_more_trials_than_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search\.num_trials: found 5, but the space has 4 points; expected at most"):
        planned(tmp_path, search={"algorithm": "random", "num_trials": 5})


def test_what_optuna_will_try_is_not_known(tmp_path: Path) -> None:
    plan = planned(tmp_path, search={"algorithm": "optuna", "num_trials": 3})
    assert len(plan.trials) == 3
    assert not plan.is_foreseen
    assert planned(tmp_path).is_foreseen


def test_trials_that_differ_in_nothing_are_counted(tmp_path: Path) -> None:
    """A stage ends with the step that reaches its budget."""
    assert planned(tmp_path, "stages[0].until.tokens: {grid: [400, 399, 500]}").repeats == 1


def test_baselines_are_planned_where_an_objective_needs_them(tmp_path: Path) -> None:
    assert planned(tmp_path).baselines is None
    plan = planned(tmp_path, objective={"metric": "compute_saved"})
    assert plan.baselines.flops_shared == plan.trials[0].plan.baseline_flops_shared()
    assert plan.baselines.trials == 4 * 3
    assert not set(plan.baselines.nodes) & set(plan.tree.nodes)


REPEATED = ("seeds=2", "baseline.tune={training.optimizer.lr: [1e-3, 2e-3]}")


def test_a_saving_is_that_of_all_seeds_with_the_best_values(tmp_path: Path) -> None:
    plan = planned(tmp_path, SPACE, *REPEATED, objective={"metric": "compute_saved"})
    trial = plan.trials[0].plan
    assert (len(trial.variants), len(trial.further_seeds)) == (1, 1)
    beside = {stage.key for run in trial.runs()[1:] for stage in run.stages}
    assert beside <= plan.baselines.nodes.keys()
    assert trial.staged.stages[-1].key not in plan.baselines.nodes


@pytest.mark.parametrize(
    "sections",
    [
        {"objective": [{"metric": "compute_saved"}, {"metric": "eval_loss"}]},
        {"objective": {"metric": "compute_saved"}, "scheduler": {"name": "asha", "grace": {"tokens": 400}}},
    ],
    ids=["judged by a loss", "ended early"],
)
def test_a_figure_of_one_run_has_no_seeds_and_no_tuned_values(tmp_path: Path, sections: dict) -> None:
    why = "in the schedule of a sweep that is not judged by compute_saved alone, or that ends trials early"
    with pytest.raises(InputError, match=f"seeds: found 2 {why}; expected 1, and seed in the sweep's space"):
        planned(tmp_path, SPACE, REPEATED[0], **sections)
    with pytest.raises(InputError, match=f"baseline.tune: found training.optimizer.lr {why}"):
        planned(tmp_path, SPACE, REPEATED[1], **sections)


# --- equal FLOPs ------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "index"), [(None, 2), ("middle", 1)])
def test_all_trials_cost_what_the_schedule_does(tmp_path: Path, stage: str | None, index: int) -> None:
    """Within a step of the stage that takes what is left, and never more."""
    lengths = LENGTHS.replace("1200", "600")
    plan = planned(tmp_path, lengths, constraints={"equal_flops": {"stage": stage} if stage else True})
    total = make_plan(parse(plan.sweep.base, tmp_path)).staged.flops
    for trial in plan.trials:
        taker = trial.plan.staged.stages[index]
        assert trial.content["stages"][index]["until"] == {"steps": taker.steps}
        assert 0 <= total - trial.plan.staged.flops < 100 * flops_per_token(taker.shape)
    steps = [trial.plan.staged.stages[index].steps for trial in plan.trials]
    assert steps[0] > steps[2] >= steps[1] == 4


def test_a_total_of_ones_own(tmp_path: Path) -> None:
    small, middle, full = planned(tmp_path).trials[0].plan.staged.stages
    total = small.flops + middle.flops + 7 * full.flops // full.steps
    plan = planned(tmp_path, "stages[0].until.tokens: {grid: [400]}", constraints={"equal_flops": {"flops": total}})
    assert plan.trials[0].plan.staged.stages[2].steps == 7
    assert plan.trials[0].plan.staged.flops == total


def test_what_a_growth_fits_is_part_of_the_total(tmp_path: Path) -> None:
    learned = "stages[2].grow={operator: learned, fit_steps: 2}"
    free = planned(tmp_path, LENGTHS, learned).trials[0].plan.staged
    constraints = {"equal_flops": {"flops": free.flops}}
    (first, *_) = planned(tmp_path, LENGTHS.replace(", 800, 1200", ""), learned, constraints=constraints).trials
    assert free.stages[2].growth_flops > 0
    assert first.plan.staged.flops == free.flops


def test_a_trial_that_has_nothing_left_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        planned(tmp_path, LENGTHS.replace("1200", "9K"), constraints={"equal_flops": True})
    assert "sweep.yaml: trial 2 (stages[0].until.tokens=9K): constraints.equal_flops: found " in str(caught.value)
    assert str(caught.value).endswith("in all; expected some left for it")


# --- what does not fit together ---------------------------------------------------------------


def test_a_trial_that_cannot_be_planned_is_named(tmp_path: Path) -> None:
    """Each value reads well by itself; the whole is no model."""
    space = "model.num_heads: {choice: [2, 4]}\nmodel.hidden_size: {choice: [8, 12]}"
    with pytest.raises(InputError) as caught:
        planned(tmp_path, space)
    assert str(caught.value) == (
        f"{tmp_path / 'sweep.yaml'}: trial 3 (model.num_heads=4, model.hidden_size=12): model.hidden_size: found 12 "
        "for 4 heads; expected a multiple of 8 (rotary positions need heads of even size), or a head_size beside it"
    )


# --- trials that count samples --------------------------------------------------------------------

DIGITS = {
    "name": "tiny",
    "data": {"source": "arrays", "path": "sklearn-digits"},
    "objective": "classification",
    "model": {"family": "vit", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 2},
    "training": {"global_batch_samples": 10},
    "stages": [{"name": "one", "until": {"samples": 100}}],
}


def digits(folder: Path, content: dict = DIGITS, **scheduler: object) -> SweepPlan:
    path = write_sweep(folder, "stages[0].until.samples: {grid: [100, 200]}", scheduler=scheduler)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return plan_sweep(load(path))


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "asha", "grace": {"flops": 1000}},
        {"name": "asha", "grace": {"samples": 50}},
        {"name": "lag", "after_growth": {"samples": 50, "keep": 1}},
    ],
)
def test_trials_of_samples_share_their_beginning_and_may_end_early(tmp_path: Path, scheduler: dict) -> None:
    plan = digits(tmp_path, **scheduler)
    assert [trial.plan.staged.duration for trial in plan.trials] == [100, 200]
    assert plan.trials[0].plan.staged.unit == "samples"


def test_trials_are_not_compared_by_losses_of_different_objectives(tmp_path: Path) -> None:
    """The longer first stage learns images without their noise up to sample 200: that loss is none of classes."""
    first = {"name": "seen", "objective": "denoising", "until": {"samples": 100}}
    content = {**DIGITS, "stages": [first, DIGITS["stages"][0]]}

    def planned(**grace: int) -> SweepPlan:
        return digits(tmp_path, content, name="asha", grace=grace)

    end = planned(samples=201).trials[1].plan.staged.stages[0].end_flops
    planned(flops=end + 1)
    said = "where a trial is still judged by the loss of denoising; expected more than"
    with pytest.raises(
        InputError, match=rf"grace.samples: found 200, {said} 200, from where on it is judged by that of c"
    ):
        planned(samples=200)
    with pytest.raises(InputError, match=rf"grace.flops: found {end}, {said} {end}, "):
        planned(flops=end)


@pytest.mark.parametrize(
    ("scheduler", "key"),
    [
        ({"name": "asha", "grace": 50}, "grace"),
        ({"name": "lag", "after_growth": {"tokens": 50, "keep": 1}}, "after_growth"),
    ],
)
def test_no_trial_of_samples_is_judged_after_some_tokens(tmp_path: Path, scheduler: dict, key: str) -> None:
    with pytest.raises(InputError, match=rf"scheduler\.{key}\.tokens: found tokens for trials that count samples"):
        digits(tmp_path, **scheduler)


def test_a_sweep_that_branches_late_shares_all_but_the_ends() -> None:
    """The factor that docs/sweeps.md gives."""
    plan = plan_sweep(load(Path(__file__).parents[2] / "jobs/sweeps/endings.yaml"))
    assert (plan.tree.trials, len(plan.tree.nodes)) == (8, 2 + 8)
    assert round(plan.tree.sharing_factor, 2) == 5.26
