"""A tuned baseline and several seeds, planned: which runs there are, what they are called, what they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import Schedule, parse
from raystage.errors import InputError
from raystage.planning.build import make_plan, with_choice
from raystage.plans.plan import Choice, Plan, RunPlan, flops_shared

LR, DECAY = "training.optimizer.lr", "training.optimizer.weight_decay"
BATCH, WARMUP = "training.global_batch_tokens", "training.lr_schedule.warmup"
RATES = [1e-3, 2e-3, 4e-3]  # the schedule's own is 2e-3


def tuned(folder: Path, tune: dict | None = None, **changes: object) -> Schedule:
    baseline = {"budgets": [1000, 2000], "tune": {LR: RATES} if tune is None else tune}
    return make_schedule(folder, **{"baseline": baseline, **changes})


def names(runs: tuple[RunPlan, ...]) -> list[str]:
    return [run.name for run in runs]


def keys(*runs: RunPlan) -> set[str]:
    return {stage.key for run in runs for stage in run.stages}


def test_every_value_is_tried_on_both_sides_and_the_schedule_comes_first(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    assert names(plan.runs()) == [
        "staged", "baseline-1000", "baseline-2000",
        "baseline-1000-lr-0.001", "baseline-2000-lr-0.001", "baseline-1000-lr-0.004", "baseline-2000-lr-0.004",
        "staged-lr-0.001", "staged-lr-0.004",
    ]  # fmt: skip
    rates = {run.name: {stage.training.optimizer.lr for stage in run.stages} for run in plan.runs()}
    assert rates["staged"] == rates["baseline-2000"] == {2e-3}
    assert rates["staged-lr-0.004"] == rates["baseline-1000-lr-0.004"] == {4e-3}
    assert plan.is_chosen  # there is no further seed that would wait for it


def test_the_schedules_own_value_is_tried_where_the_list_lacks_it(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path, {LR: [1e-3, 4e-3]}))
    assert [one.staged_values for one in plan.candidates] == [((LR, 2e-3),), ((LR, 1e-3),), ((LR, 4e-3),)]


def test_several_paths_are_tried_in_every_combination(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path, {LR: [1e-3, 2e-3], DECAY: [0.0, 0.1]}))
    assert names(tuple(one.staged for one in plan.candidates)) == [
        "staged", "staged-lr-0.001-weight_decay-0.0", "staged-lr-0.001-weight_decay-0.1",
        "staged-lr-0.002-weight_decay-0.0",
    ]  # fmt: skip
    assert len(set(names(plan.runs()))) == len(plan.runs())


def test_batch_warmup_and_weight_decay_are_tuned_on_both_sides_in_every_combination(tmp_path: Path) -> None:
    tune = {BATCH: [100, 200], WARMUP: [0.1, 100], DECAY: [0.1, 0.3]}
    plan = make_plan(tuned(tmp_path, tune))
    assert len(plan.candidates) == 8
    for one in plan.candidates:
        values = dict(one.staged_values)
        for run in (one.staged, *one.baselines):
            for stage in run.stages:
                assert stage.training.global_batch_tokens == values[BATCH]
                assert stage.training.lr_schedule.warmup == values[WARMUP]
                assert stage.training.optimizer.weight_decay == values[DECAY]
    other = next(one for one in plan.variants if dict(one.staged_values) == {BATCH: 200, WARMUP: 0.1, DECAY: 0.3})
    assert other.staged.name == "staged-global_batch_tokens-200-warmup-0.1-weight_decay-0.3"
    changed = {"global_batch_tokens": 200, "optimizer": {"lr": 2e-3, "weight_decay": 0.3}}
    rate = {"lr_schedule": {"kind": "wsd", "warmup": 0.1, "decay": 0.2}}
    alone = make_plan(tuned(tmp_path, {}, training={**changed, **rate}))
    assert keys(other.staged, *other.baselines) == keys(*alone.runs())


@pytest.mark.parametrize(
    ("path", "own"), [(BATCH, {"global_batch_tokens": 50}), (WARMUP, {"lr_schedule": {"warmup": 50}})]
)
def test_a_stage_with_its_own_value_of_what_is_tuned_is_refused(path: str, own: dict, tmp_path: Path) -> None:
    """As with the rate: a value is tuned for a whole run."""
    schedule = tuned(tmp_path, {path: [100, 200]})
    content = schedule.content()
    content["stages"][1]["training"] = own
    with pytest.raises(InputError, match=rf"^stages\[1\]\.{path}: found 50.* in a stage, which baseline\.tune"):
        make_plan(parse(content))


def test_a_stage_with_a_rate_of_its_own_takes_the_tuned_warmup(tmp_path: Path) -> None:
    content = tuned(tmp_path, {WARMUP: [100, 200]}).content()
    content["stages"][1]["training"] = {"lr_schedule": {"kind": "linear"}}
    plan = make_plan(parse(content))
    assert [one.staged.stages[1].training.lr_schedule.warmup for one in plan.candidates] == [100, 200]


def test_too_many_combinations_are_refused(tmp_path: Path) -> None:
    tune = {LR: [1e-3 * n for n in range(1, 13)], DECAY: [0.01 * n for n in range(9)]}
    with pytest.raises(InputError, match=r"^baseline\.tune: found 120 combinations of values; expected at most 100$"):
        make_plan(tuned(tmp_path, tune))  # ten rates times nine, with the schedule's own among them


def test_a_variant_has_the_keys_of_a_schedule_with_its_values(tmp_path: Path) -> None:
    """So a store that has that schedule's stages reuses them."""
    (first, *_) = make_plan(tuned(tmp_path)).variants
    alone = make_plan(tuned(tmp_path, {}, training={"optimizer": {"lr": 1e-3}}))
    # `make_schedule` replaces the section's optimizer alone; the rate's shape is the same.
    assert [stage.key for stage in first.staged.stages] == [stage.key for stage in alone.staged.stages]
    assert keys(*first.baselines) == keys(*alone.baselines)


def test_a_further_seed_has_the_keys_of_a_schedule_with_that_seed(tmp_path: Path) -> None:
    plan = make_plan(make_schedule(tmp_path, seed=7, seeds=3))
    assert names(plan.runs())[4:] == [
        "baseline-1000-seed-8", "baseline-1500-seed-8", "baseline-2000-seed-8",
        "baseline-1000-seed-9", "baseline-1500-seed-9", "baseline-2000-seed-9", "staged-seed-8", "staged-seed-9",
    ]  # fmt: skip
    eight, alone = plan.further_seeds[0], make_plan(make_schedule(tmp_path, seed=8))
    assert keys(eight.staged, *eight.baselines) == keys(*alone.runs())
    assert plan.is_chosen


def test_a_stage_with_a_seed_of_its_own_has_others_on_further_seeds(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, seeds=2)
    content = schedule.content()
    content["stages"][1]["seed"] = 40
    (further,) = make_plan(parse(content)).further_seeds
    assert [stage.seed for stage in further.staged.stages] == [1, 41]
    assert {stage.seed for run in further.baselines for stage in run.stages} == {1}


def test_further_seeds_train_what_is_chosen_once_it_is_known(tmp_path: Path) -> None:
    """Each side its own; their names and their FLOPs are those that were planned."""
    schedule = tuned(tmp_path, seeds=2)
    plan = make_plan(schedule)
    assert not plan.is_chosen
    assert names(plan.known_runs()) == [name for name in names(plan.runs()) if not name.endswith("seed-1")]
    chosen = with_choice(plan, schedule, Choice(((LR, 4e-3),), (((LR, 1e-3),), ((LR, 2e-3),))))
    (further,) = chosen.further_seeds
    assert {stage.training.optimizer.lr for stage in further.staged.stages} == {4e-3}
    assert [{stage.training.optimizer.lr for stage in run.stages} for run in further.baselines] == [{1e-3}, {2e-3}]
    assert chosen.known_runs() == chosen.runs()
    assert names(chosen.runs()) == names(plan.runs())
    # Budgets with other values share no trunk: 800 tokens of the larger one's are also of the smaller one's.
    assert flops_shared(chosen.runs()) == flops_shared(plan.runs()) + further.baselines[0].stages[0].flops


def test_without_either_nothing_is_added(tmp_path: Path) -> None:
    plan = make_plan(make_schedule(tmp_path))
    assert plan.runs() == (plan.staged, *plan.baselines) == plan.known_runs()


def test_the_plan_as_json_has_all_runs_and_what_they_cost(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path, seeds=2))
    shown = plan_json(plan)
    assert shown["runs"] == names(plan.runs())
    assert [one["values"]["staged"] for one in shown["variants"]] == [{LR: 1e-3}, {LR: 4e-3}]
    assert [one["seed"] for one in shown["further_seeds"]] == [1]
    # Three values and a seed more, and no two of these share a stage.
    once = plan.staged.flops + plan.baseline_flops_shared()
    assert shown["flops_of_all_runs"] == 4 * once


def test_which_runs_are_staged(tmp_path: Path) -> None:
    plan: Plan = make_plan(tuned(tmp_path, seeds=2))
    assert [run.name for run in plan.runs() if plan.kind_of(run.name) == "staged"] == [
        "staged", "staged-lr-0.001", "staged-lr-0.004", "staged-seed-1",
    ]  # fmt: skip
    assert plan.variant_of("baseline-2000-seed-1").seed == 1
