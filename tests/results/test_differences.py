"""What the two sides differ in besides the staging, what the baseline's rate is, and where nothing is staged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_records, make_schedule
from raystage.config.schedule import load
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.results.differences import differences, is_staged

JOBS = Path(__file__).parents[2] / "jobs"
SAME = {"name": "a", "model": {"num_layers": 4}, "until": {"tokens": 800}}
LAST = {"name": "b", "model": {"num_layers": 4}, "until": {"tokens": 1200}}
GROWN = {"name": "a", "model": {"num_layers": 2}, "until": {"tokens": 800}}, {**LAST, "grow": {"operator": "stack"}}


def planned(folder: Path, first: dict, last: dict, **changes: object) -> Plan:
    return make_plan(make_schedule(folder, stages=[{**SAME, "training": first}, {**LAST, "training": last}], **changes))


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ({"global_batch_tokens": 50}, {}, "training.global_batch_tokens (100 in the baseline, 50 in a, 100 in b)"),
        ({}, {"ramp": {"global_batch_tokens": {"from": 50, "over": {"tokens": 400}}}},
         "training.global_batch_tokens (100 in the baseline, 100 in a, 50 rising to 100 in b)"),
        ({}, {"optimizer": {"weight_decay": 5}},
         "training.optimizer.weight_decay (5 in the baseline, 0.1 in a, 5 in b)"),
        ({}, {"optimizer": {"name": "sgd"}}, "training.optimizer.name (sgd in the baseline, adamw in a, sgd in b)"),
        ({}, {"lr_schedule": {"kind": "linear", "warmup": 0}},
         "training.lr_schedule (wsd, warmup 100, decay 0.2 over the whole run in the baseline, wsd, warmup 100, decay "
         "0.2 over the whole run in a, linear, warmup 0 over its own length in b)"),
        ({}, {"lr_schedule": {"from": "current", "kind": "piecewise", "points": [{"at": 0.5, "ratio": 0.2}]}},
         "training.lr_schedule (wsd, warmup 100, decay 0.2 over the whole run in the baseline, wsd, warmup 100, decay "
         "0.2 over the whole run in a, piecewise, warmup 0, linear to 0.2 at 0.5, from the current rate over its own "
         "length in b)"),
        ({"precision": "bf16"}, {}, "training.precision (fp32 in the baseline, bf16 in a, fp32 in b)"),
        ({"gradient_clipping": 0}, {}, "training.gradient_clipping (1 in the baseline, 0 in a, 1 in b)"),
        ({"zero_stage": 2, "workers": 2, "checkpoint": {"every": 100}, "hang_seconds": 60}, {}, None),
    ],
)  # fmt: skip
def test_one_model_in_two_stages_saves_nothing_and_it_is_said_what_differs(
    tmp_path: Path, first: dict, last: dict, said: str | None
) -> None:
    """The staged run's loss is the best baseline's, at far less compute than that."""
    plan = planned(tmp_path, first, last, baseline={"budgets": [6000, 7000, 8000]})
    report = build_report(plan, make_records(plan, 2.2, (2.4, 2.2, 2.1)), {})
    savings = report.savings
    assert not is_staged(plan)
    assert (savings.compute_saved, savings.time_saved, savings.loss_difference_at_equal_flops) == (None,) * 3
    assert savings.verdict.startswith("no saving to report: nothing is staged, all stages train one model")
    assert " at equal held-out loss 2.200 it is " in savings.verdict
    assert "saved" not in markdown(report).split("##")[0]
    if said is None:
        assert savings.verdict.endswith("and the two sides are trained alike")
        assert not any("Not trained alike" in warning for warning in report.warnings)
    else:
        assert savings.verdict.endswith(f"and the two sides differ in {said}")
        assert f"Not trained alike: {said}. Part of the difference may come from that." in report.warnings


def test_where_something_grows_the_difference_is_a_doubt_and_the_saving_stays(tmp_path: Path) -> None:
    stages = [{**GROWN[0], "training": {"global_batch_tokens": 50}}, GROWN[1]]
    plan = make_plan(make_schedule(tmp_path, stages=stages))
    report = build_report(plan, make_records(plan, 2.2, (2.7, 2.4, 2.19)), {})
    assert is_staged(plan)
    assert report.savings.compute_saved > 0
    said = "Not trained alike: training.global_batch_tokens (100 in the baseline, 50 in a, 100 in b)."
    assert any(warning.startswith(said) for warning in report.warnings)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"num_layers": 4, "context_length": 5}},
        {"data": {"validation_fraction": 0.4}},
        {"training": {"ramp": {"context_length": {"from": 5, "over": {"tokens": 100}}}}},
        {"freeze": {"embeddings": True}},
        {"data": {"curriculum": {"start": 0.5}}},
    ],
)
def test_text_context_and_what_stands_still_are_staging(tmp_path: Path, change: dict) -> None:
    last = change if "validation_fraction" in change.get("data", {}) else {}
    assert not is_staged(make_plan(make_schedule(tmp_path, stages=[SAME, LAST])))
    if last:
        assert is_staged(make_plan(make_schedule(tmp_path, stages=[SAME, {**LAST, **last}])))
    else:
        assert is_staged(make_plan(make_schedule(tmp_path, stages=[{**SAME, **change}, LAST])))


def test_what_is_tuned_is_each_sides_best_and_no_difference(tmp_path: Path) -> None:
    tune = {"training.optimizer.lr": [1e-3, 2e-3]}
    plan = make_plan(make_schedule(tmp_path, baseline={"budgets": [1000, 2000], "tune": tune}))
    assert differences(plan) == []


def test_a_ramp_is_a_difference_where_the_batch_that_it_comes_to_is_tuned(tmp_path: Path) -> None:
    ramp = {"ramp": {"global_batch_tokens": {"from": 50, "over": {"tokens": 400}}}}
    baseline = {"budgets": [1000, 2000], "tune": {"training.global_batch_tokens": [100, 200]}}
    plan = make_plan(make_schedule(tmp_path, stages=[GROWN[0], {**GROWN[1], "training": ramp}], baseline=baseline))
    assert differences(plan) == ["training.ramp.global_batch_tokens (none in the baseline, none in a, from 50 in b)"]


@pytest.mark.parametrize(
    ("handicap", "said"),
    [
        (
            {"activation_checkpointing": True},
            "activation_checkpointing (true in the baseline, false in small and full)",
        ),
        ({"micro_batch_size": 1}, "micro_batch_size (1 in the baseline, the whole batch in small and full)"),
        ({"offload_optimizer": "cpu"}, "offload_optimizer (cpu in the baseline, none in small and full)"),
        ({"compile": True}, "compile (true in the baseline, false in small and full)"),
        ({"cross_entropy": "chunked"}, "cross_entropy (chunked in the baseline, whole in small and full)"),
        ({"cpus_per_worker": 2}, "cpus_per_worker (2 in the baseline, 1 in small and full)"),
    ],
)
def test_what_slows_the_baseline_down_is_said(tmp_path: Path, handicap: dict, said: str) -> None:
    plan = make_plan(make_schedule(tmp_path, baseline={"budgets": [1000, 1500, 2000], "training": handicap}))
    report = build_report(plan, make_records(plan, 2.2, (2.7, 2.4, 2.19)), {})
    assert report.savings.time_saved > 0
    assert f"Not run alike: training.{said}. So time_saved is not that of growing alone." in report.warnings
    assert differences(plan) == []


def test_other_devices_of_the_two_sides_are_said(tmp_path: Path) -> None:
    plan = make_plan(make_schedule(tmp_path))
    records = make_records(plan, 2.2, (2.7, 2.4, 2.19))
    ours = {stage.key for stage in plan.staged.stages}
    records = {
        key: replace(one, environment={"device": "fast" if key in ours else "slow"}) for key, one in records.items()
    }
    said = "Not the same machines throughout (fast and slow): time_saved compares them."
    assert said in build_report(plan, records, {}).warnings


# --- the baseline's rate ------------------------------------------------------------------------


def rate_of(plan: Plan) -> tuple:
    schedule = plan.baselines[-1].stages[-1].training.lr_schedule
    return schedule.kind, schedule.warmup, schedule.decay


@pytest.mark.parametrize(
    ("of_file", "of_stage", "expected"),
    [
        ({"kind": "wsd", "warmup": 100, "decay": 0.2}, None, ("wsd", 100, 0.2)),
        ({"kind": "wsd", "warmup": 100, "decay": 0.2}, {"kind": "linear", "warmup": 0}, ("wsd", 100, 0.2)),
        ({"kind": "cosine", "warmup": 0.05}, {"kind": "constant"}, ("cosine", 0.05, 0.2)),
        # A rate that never falls is none for a whole run: the last stage's is, with the warm-up of the first.
        ({"kind": "constant", "warmup": 100}, {"kind": "linear", "warmup": 0}, ("linear", 100, 0.2)),
        ({"kind": "constant", "warmup": 0.1}, {"kind": "wsd", "warmup": 20, "decay": 300}, ("wsd", 200, 300)),
        ({"kind": "constant", "warmup": 0}, {"kind": "linear", "warmup": 50}, ("linear", 50, 0.2)),
    ],
)
def test_the_baselines_rate_is_one_for_a_whole_run(
    tmp_path: Path, of_file: dict, of_stage: dict | None, expected: tuple
) -> None:
    training = {"lr_schedule": of_file}
    own = {"training": {"lr_schedule": of_stage}} if of_stage else {}
    plan = make_plan(make_schedule(tmp_path, training=training, stages=[GROWN[0], {**GROWN[1], **own}]))
    assert rate_of(plan) == expected


def test_where_every_stage_has_its_own_rate_the_baseline_warms_up_as_the_first(tmp_path: Path) -> None:
    first = {**GROWN[0], "training": {"lr_schedule": {"kind": "constant", "warmup": 0.25}}}
    last = {**GROWN[1], "training": {"lr_schedule": {"kind": "linear", "warmup": 0}}}
    content = make_schedule(tmp_path, stages=[first, last]).model_copy()
    training = content.training.model_construct(
        **{name: getattr(content.training, name) for name in content.training.model_fields_set - {"lr_schedule"}}
    )
    plan = make_plan(content.model_copy(update={"training": training}))
    assert rate_of(plan)[:2] == ("linear", 200)  # a quarter of 800 tokens


def test_a_schedule_of_one_stage_is_a_whole_run(tmp_path: Path) -> None:
    own = {**SAME, "training": {"lr_schedule": {"kind": "linear", "warmup": 0.05}}}
    assert rate_of(make_plan(make_schedule(tmp_path, stages=[own]))) == ("linear", 0.05, 0.2)


def test_the_user_may_say_what_the_baseline_is_trained_with(tmp_path: Path) -> None:
    own = {"global_batch_tokens": 50, "lr_schedule": {"kind": "cosine"}, "optimizer": {"weight_decay": 0.3}}
    plain = make_plan(make_schedule(tmp_path))
    plan = make_plan(make_schedule(tmp_path, baseline={"training": own}))
    training = plan.baselines[0].stages[-1].training
    assert (training.global_batch_tokens, training.micro_batch_size) == (50, 5)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (2e-3, 0.3)
    assert rate_of(plan) == ("cosine", 100, 0.2)
    assert [stage.key for stage in plan.staged.stages] == [stage.key for stage in plain.staged.stages]
    assert "training.global_batch_tokens (50 in the baseline, 100 in small and full)" in differences(plan)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"ramp": {}}, "baseline.training.ramp: found in the baseline, which has none of its own; remove it"),
        ({"evaluate": {"tokens": 10}}, "baseline.training.evaluate: found in the baseline, which has none of its own"),
        ({"global_batch_tokens": 55}, "baseline.training.global_batch_tokens: found 55; expected a multiple of"),
        ({"optimizer": {"momentum": 0.5}}, "baseline.training.optimizer.momentum: found 0.5, but adamw takes no"),
    ],
)
def test_what_does_not_fit_the_baseline_is_refused(tmp_path: Path, own: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(make_schedule(tmp_path, baseline={"training": own}))
    assert str(caught.value).startswith(said)


def test_what_is_tuned_is_not_set_for_the_baseline_alone(tmp_path: Path) -> None:
    baseline = {"tune": {"training.optimizer.lr": [1e-3]}, "training": {"optimizer": {"lr": 1e-4}}}
    with pytest.raises(InputError, match=r"^baseline\.training\.optimizer\.lr: found 0\.0001 in the baseline, which"):
        make_plan(make_schedule(tmp_path, baseline=baseline))


def test_the_sweeps_schedule_ends_with_a_falling_rate() -> None:
    """The file's warm-up of 50K tokens is none of a last stage of 50K tokens."""
    last = make_plan(load(JOBS / "schedules" / "growth.yaml")).staged.stages[-1]
    assert [piece.end_lr < piece.start_lr for piece in last.rate] == [True]
