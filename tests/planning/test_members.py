"""The members of an ensemble as planned: where they branch, what differs, who learns from them, and what that costs."""

from __future__ import annotations

from pathlib import Path

import own_nets
import pytest
import yaml

from factories import make_record, make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import Schedule, parse
from raystage.errors import InputError
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.results.ledger import measure_ledger
from raystage.results.record import Prefix
from raystage.results.report import report_from_json
from raystage.storage.naming import known_stages
from raystage.sweeps.config import load_any
from raystage.sweeps.trials import plan_sweep
from raystage.units import format_flops

CONSTANT = {"lr_schedule": {"kind": "constant"}}
LR = "training.optimizer.lr"


def schedule_of(folder: Path, ensemble: object, taught: bool = False, **changes: object) -> Schedule:
    """trunk and several, 800 + 400 tokens in steps of 100 at a constant rate of 2e-3; with `taught` also a student."""
    several = {"name": "several", "until": {"tokens": 400}, "ensemble": ensemble, **changes.pop("several", {})}
    stages = [{"name": "trunk", "until": {"tokens": 800}}, several]
    if taught:
        objective = {"name": "distillation", "teacher": "several"}
        stages.append({"name": "student", "until": {"tokens": 400}, "objective": objective})
    model = {"num_layers": 2}
    return make_schedule(
        folder, **{"stages": stages, "model": model, "training": CONSTANT, "baseline": None, **changes}
    )


def plan_of(folder: Path, ensemble: object, taught: bool = False, **changes: object) -> Plan:
    return make_plan(schedule_of(folder, ensemble, taught, **changes))


def finished(plan: Plan) -> dict:
    return {key: make_record(stage, 2.0) for key, stage in plan.stages_by_key().items()}


def entries_of(plan: Plan, records: dict) -> dict:
    return {one.what: one for one in measure_ledger(plan, records, {}).entries}


# --- the members ------------------------------------------------------------------------------


def test_members_branch_from_what_they_share(tmp_path: Path) -> None:
    plan, plain = plan_of(tmp_path, {"members": 3}), plan_of(tmp_path, None)
    assert [one.key for one in plan.staged.stages] == [one.key for one in plain.staged.stages]
    (ensemble,) = plan.ensembles
    assert [one.name for one in ensemble.members] == ["several", "several-member-2", "several-member-3"]
    assert [run.stages[0] for run in ensemble.runs] == [plan.staged.stages[0]] * 2
    assert len({one.key for one in ensemble.members}) == 3
    assert [run.name for run in plan.runs()] == ["several-member-2", "several-member-3", "staged"]
    assert [plan.kind_of(run.name) for run in plan.runs()] == ["branch", "branch", "staged"]


def test_a_member_is_what_its_stage_would_be_with_other_values(tmp_path: Path) -> None:
    """And so has the key that the stage then has."""
    written = {"members": 3, "vary": "schedule", "set": {LR: "*0.5", "training.optimizer.weight_decay": [0.1, 0.2]}}
    members = plan_of(tmp_path, written).ensembles[0].members
    for member, lr, decay in zip(members[1:], (1e-3, 5e-4), (0.1, 0.2), strict=True):
        own = {"training": {"optimizer": {"lr": lr, "weight_decay": decay}}}
        assert member.key == plan_of(tmp_path, None, several=own).staged.stages[1].key


def test_seeds_go_up_from_member_to_member(tmp_path: Path) -> None:
    members = plan_of(tmp_path, {"members": 3}, several={"seed": 7}).ensembles[0].members
    assert [one.seed for one in members] == [7, 8, 9]
    assert [one.drawn_with for one in members] == [7, 8, 9]
    assert members[1].key == plan_of(tmp_path, None, several={"seed": 8}).staged.stages[1].key


def test_with_other_data_the_weights_are_drawn_alike(tmp_path: Path) -> None:
    stages = [{"name": "several", "until": {"tokens": 400}, "ensemble": {"members": 3, "vary": "data"}}]
    members = plan_of(tmp_path, None, stages=stages).ensembles[0].members
    assert [one.seed for one in members] == [0, 1, 2]
    assert [one.drawn_with for one in members] == [0, 0, 0]
    stages[0]["ensemble"]["vary"] = "seed"
    others = plan_of(tmp_path, None, stages=stages).ensembles[0].members
    assert others[0].key == members[0].key
    assert {one.key for one in others[1:]}.isdisjoint(one.key for one in members[1:])


def test_a_stage_with_a_longer_context_after_it_changes_no_member(tmp_path: Path) -> None:
    """All stages of a run read windows of its longest context; so do members."""
    longer = {"name": "long", "until": {"tokens": 400}, "model": {"context_length": 20}}
    stages = [{"name": "several", "until": {"tokens": 400}, "ensemble": {"members": 2}}, longer]
    plan = plan_of(tmp_path, None, stages=stages)
    assert [one.window for one in plan.ensembles[0].members] == [20, 20]


def test_members_of_several_stages_are_trained_in_their_order_and_after_what_is_delivered(tmp_path: Path) -> None:
    """The second ensemble and what the student delivers need the members of the first one."""
    schedule = schedule_of(tmp_path, {"members": 2}, taught=True, several={"deliver": {"decay": 200}}).content()
    schedule["stages"][2] |= {"ensemble": {"members": 2}, "deliver": {"decay": 200}}
    plan = make_plan(Schedule.model_validate(schedule))
    assert [run.name for run in plan.branches] == [
        "deliver-several", "several-member-2", "deliver-student", "student-member-2",
    ]  # fmt: skip
    done: set[str] = set()
    for stage in plan.stages_by_key().values():
        assert not stage.teacher or {one.key for one in stage.teacher.all} <= done
        done.add(stage.key)
    student = plan.ensembles[1].members[1]
    assert [one.name for one in student.teacher.all] == ["several", "several-member-2"]


# --- the student ------------------------------------------------------------------------------


def test_a_student_learns_from_all_members(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"members": 3}, taught=True)
    members, student = plan.ensembles[0].members, plan.staged.stages[-1]
    assert [one.key for one in student.teacher.all] == [one.key for one in members]
    assert student.parent_key == members[0].key
    forward = sum(one.model_flops(10) // 3 for one in members)
    assert student.teacher_flops == 400 * forward


def test_what_the_student_learns_from_is_claimed(tmp_path: Path) -> None:
    """By hand: the staged run, and two stages of 400 tokens besides."""
    plan = plan_of(tmp_path, {"members": 3}, taught=True, baseline={"budgets": [1000]})
    records, further = finished(plan), plan.ensembles[0].members[1:]
    claimed = plan.staged.flops + 2 * further[0].flops
    assert plan.staged_flops == claimed
    assert plan.predicted_saving == pytest.approx(1 - claimed / plan.scratch_flops)
    assert plan_json(plan)["flops"] == claimed
    report = build_report(plan, records, {})
    assert report.savings.flops_staged == report.ledger.flops_claimed == claimed
    assert "and with the cost of 2 further members that it learns from" in report.savings.verdict
    members = entries_of(plan, records)["training members that stages learn from"]
    assert (members.flops, members.is_claimed) == (2 * further[0].flops, True)
    del records[further[1].key]
    waiting = build_report(plan, records, {}).savings
    assert "1 of 4 runs not finished (several-member-3)" in waiting.verdict


def test_what_a_member_took_over_from_another_one_is_claimed_once(tmp_path: Path) -> None:
    """The second member is twice as long, and continues the first one."""
    longer = {"members": 2, "vary": "schedule", "set": {"until.tokens": "*2"}}
    plan = plan_of(tmp_path, longer, taught=True, baseline={"budgets": [1000]})
    first, second = plan.ensembles[0].members
    records = finished(plan)
    prefix = Prefix(first.key, duration=400, flops=first.flops, seconds=0.0)
    records[second.key] = make_record(second, 2.0, prefix=prefix)
    report = build_report(plan, records, {})
    assert report.savings.flops_staged == plan.staged.flops + second.flops - first.flops
    assert report.ledger.flops_claimed == report.savings.flops_staged


def test_members_that_no_stage_learns_from_are_spent_and_not_claimed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"members": 3}, baseline={"budgets": [1000]})
    records = finished(plan)
    report = build_report(plan, records, {})
    assert plan.staged_flops == report.savings.flops_staged == plan.staged.flops == report.ledger.flops_claimed
    spent = entries_of(plan, records)["training other members"]
    assert (spent.flops, spent.is_claimed) == (2 * plan.ensembles[0].members[1].flops, False)
    for member in plan.ensembles[0].members[1:]:
        del records[member.key]
    assert "yet" not in build_report(plan, records, {}).savings.verdict


def test_a_family_counts_the_members_that_a_delivered_student_learned_from(tmp_path: Path) -> None:
    written = schedule_of(tmp_path, {"members": 2}, taught=True).content()
    written["stages"][2]["deliver"] = {"decay": 0}
    plan = make_plan(Schedule.model_validate(written))
    assert build_report(plan, {}, {}).delivered.flops == plan.staged_flops > plan.staged.flops


def test_a_baseline_has_neither_members_nor_their_student_s_teacher(tmp_path: Path) -> None:
    with_all = plan_of(tmp_path, {"members": 3}, taught=True, baseline={"budgets": [1000]})
    plain = plan_of(tmp_path, None, taught=True, baseline={"budgets": [1000]})
    assert with_all.baselines == plain.baselines


# --- what is shown ----------------------------------------------------------------------------


def test_the_report_has_every_member_and_what_all_cost(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"members": 3}, taught=True)
    records = finished(plan)
    trunk, several = plan.staged.stages[:2]
    records[plan.ensembles[0].members[1].key] = make_record(plan.ensembles[0].members[1], 1.5)
    report = build_report(plan, records, {})
    (members,) = report.members
    assert [row.eval_loss for row in members.members] == [2.0, 1.5, 2.0]
    assert (members.flops, members.further_flops) == (trunk.flops + 3 * several.flops, 2 * several.flops)
    assert members.forward_flops == 3 * (several.model_flops(10) // 3)
    assert (members.vary, members.teaches) == ("seed", ("student",))
    assert report_from_json(to_json(report)) == report
    assert "| several | several-member-2 |" in markdown(report)
    assert f"| several | all together |  | {format_flops(members.flops)} |" in markdown(report)
    assert known_stages(to_json(report)).all["several-member-2"] == plan.ensembles[0].members[1].key
    assert plan_json(plan)["members"] == to_json(build_report(plan, {}, {}).members)


def test_a_report_without_any_says_nothing_of_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, None)
    assert "members" not in to_json(build_report(plan, finished(plan), {}))
    assert "members" not in plan_json(plan)


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ensemble", "said"),
    [
        (4, "ensemble: found 4; expected a mapping of keys to values, for example ensemble: {members: 4}"),
        ({}, "ensemble.members: missing"),
        ({"members": 1}, "ensemble.members: found 1; expected at least 2"),
        ({"members": 33}, "ensemble.members: found 33; expected at most 32"),
        ({"members": 2, "combine": "max"}, "ensemble.combine: found 'max'; expected 'mean'"),
        ({"members": 2, "vary": "schedule"}, "ensemble: found vary: schedule without set; expected for example set:"),
        ({"members": 2, "set": {LR: 1}}, "ensemble: found set with vary: seed; expected vary: schedule beside it"),
        ({"members": 3, "vary": "schedule", "set": {LR: [1e-3]}},
         f"ensemble: found 1 value of {LR} for 3 members; expected 2: one for each member after the first"),
        ({"members": 2, "vary": "schedule", "set": {"name": "b"}}, "ensemble.set: found name; every member keeps that"),
        ({"members": 3, "vary": "schedule", "set": {LR: 1e-3}},
         "ensemble.set: found members 2 and 3 that are trained alike; expected values that differ"),
        ({"members": 2, "vary": "schedule", "set": {"training.hang_seconds": 60}},
         "ensemble.set: found members 1 and 2 that are trained alike"),
        ({"members": 2, "vary": "schedule", "set": {"training.rate": 1}},
         "ensemble.set: member 2 cannot be planned: stages[1].training.rate: unknown key"),
        ({"members": 2, "vary": "schedule", "set": {"model.num_layers": 4, "grow": {"operator": "stack"}}},
         "ensemble.set: member 2 cannot be planned: model.num_layers: found 4; expected 2: all members have the shape"),
        ({"members": 2, "vary": "schedule", "set": {"data.validation_fraction": 0.6}},
         "ensemble.set: member 2 cannot be planned: data: found other text than that of the stage"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, ensemble: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        plan_of(tmp_path, ensemble)
    assert str(error.value).startswith(f"stages[1].{said}")


def test_a_member_that_is_judged_by_another_loss(tmp_path: Path) -> None:
    """A module of the user's own can learn both, with one shape."""
    model = {"family": "module", "build": f"{own_nets.__file__}:reader", "vocab_size": 300, "context_length": 10}
    other = {"members": 2, "vary": "schedule", "set": {"objective": "masked_lm"}}
    with pytest.raises(InputError, match="found masked_lm, which is judged by another loss than causal_lm"):
        make_plan(parse({**schedule_of(tmp_path, other).content(), "model": model}))


def test_a_seed_beyond_the_last_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stages\[1\].ensemble: member 3 cannot be planned: stages\[1\].seed: found"):
        plan_of(tmp_path, {"members": 3}, seed=2**32 - 2)


def test_a_member_whose_name_a_stage_has(tmp_path: Path) -> None:
    stages = [{"name": name, "until": {"tokens": 400}} for name in ("a", "a-member-2")]
    stages[0]["ensemble"] = {"members": 2}
    with pytest.raises(InputError, match=r"stages\[0\].ensemble: found beside a stage 'a-member-2'"):
        plan_of(tmp_path, None, stages=stages)


def test_beside_values_and_seeds_whose_runs_would_need_members_of_their_own(tmp_path: Path) -> None:
    tune = {"baseline": {"budgets": [1000], "tune": {LR: [1e-3, 2e-3]}}}
    for beside, changes in {"baseline.tune": tune, "seeds": {"baseline": {"budgets": [1000]}, "seeds": 2}}.items():
        with pytest.raises(InputError, match=rf"stages\[1\].ensemble: found beside {beside}, each of whose runs"):
            plan_of(tmp_path, {"members": 2}, **changes)


def test_a_retry_whose_members_cannot_be_planned(tmp_path: Path) -> None:
    """Known before the run: a batch of 100 tokens has 10 sequences, and that of the member 5."""
    several = {"accept": {"eval_loss_below": 2}, "on_reject": {"retry": {"set": {"training.workers": 8}}}}
    members = {"members": 2, "vary": "schedule", "set": {"training.global_batch_tokens": 50}}
    with pytest.raises(InputError) as error:
        plan_of(tmp_path, members, several=several)
    assert str(error.value) == (
        "stages[1].on_reject.retry.set: attempt 1 cannot be planned: stages[1].ensemble.set: member 2 cannot be "
        "planned: stages[1].training.workers: found 8; expected at most one for each of a global batch's 5 sequences, "
        "or training.global_batch_tokens of at least 80"
    )


def test_in_the_schedule_of_a_sweep(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(schedule_of(texts, {"members": 2}).content()))
    sweep = {"name": "s", "schedule": "base.yaml", "space": {LR: {"grid": [1e-3, 2e-3]}},
             "search": {"algorithm": "grid"}, "objective": {"metric": "eval_loss", "mode": "min"}}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(InputError, match=r"stages\[1\].ensemble: found in the schedule of a sweep"):
        plan_sweep(load_any(tmp_path / "sweep.yaml", ()))
