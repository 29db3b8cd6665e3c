"""Which models stages deliver, what the decays are that lead to them, and that the run itself stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_record, make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.errors import InputError
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.plans import learning_rate
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.results.branches.family import delivered_family
from raystage.results.ledger import measure_ledger
from raystage.results.report import report_from_json
from raystage.storage.naming import known_stages
from raystage.sweeps.config import load_any
from raystage.sweeps.trials import plan_sweep

CONSTANT = {"lr_schedule": {"kind": "constant"}}


def plan_of(folder: Path, small: object = None, full: object = None, **changes: object) -> Plan:
    """2 layers, then 4, for 800 + 1,200 tokens, in steps of 100 tokens at a constant rate of 2e-3."""
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 1200}, "grow": {"operator": "stack"}},
    ]
    for stage, deliver in zip(stages, (small, full), strict=True):
        stage |= {} if deliver is None else {"deliver": deliver}
    return make_plan(make_schedule(folder, **{"stages": stages, "training": CONSTANT, "baseline": None, **changes}))


def finished(plan: Plan) -> dict:
    return {key: make_record(stage, 2.0) for key, stage in plan.stages_by_key().items()}


# --- the decay --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deliver", "tokens", "rates"),
    [
        (True, 100, (2e-3, 0)),  # a tenth of 800, in whole steps
        ({"decay": 0.5}, 400, (2e-3, 0)),
        ({"decay": 250}, 300, (2e-3, 0)),
        ({"decay": 400, "min_lr_ratio": 0.1}, 400, (2e-3, 2e-4)),
    ],
)
def test_a_decay_goes_on_from_the_rate_and_the_place_of_its_stage(
    tmp_path: Path, deliver: object, tokens: int, rates: tuple[float, float]
) -> None:
    plan = plan_of(tmp_path, deliver)
    (delivered,) = plan.deliveries
    small, decay = delivered.run.stages
    assert small is plan.staged.stages[0]
    assert (decay.name, decay.parent_key, decay.start, decay.duration) == ("small-decay", small.key, 800, tokens)
    assert (decay.shape, decay.growth.operator, decay.training.optimizer) == (
        small.shape, "identity", small.training.optimizer,
    )  # fmt: skip
    found = [learning_rate.rate_at(decay.rate, at) for at in (800, 800 + tokens)]
    assert found == pytest.approx(rates)


def test_a_decay_falls_in_the_shape_that_is_asked_for(tmp_path: Path) -> None:
    for shape, half in (("linear", 1e-3), ("cosine", 1e-3), ("1-sqrt", 2e-3 * (1 - 0.5**0.5))):
        decay = plan_of(tmp_path, {"decay": 400, "decay_shape": shape}).deliveries[0].model
        assert learning_rate.rate_at(decay.rate, 1000) == pytest.approx(half)


@pytest.mark.parametrize(
    ("deliver", "rate"),
    [
        ({"decay": 0}, {"kind": "constant"}),
        (True, {"kind": "wsd", "decay": 0.2}),  # of the whole run: it ends where the stage ends
        (True, {"kind": "cosine"}),
        (True, {"kind": "piecewise", "points": [{"at": 0.5, "ratio": 1}, {"at": 1, "ratio": 0.1}]}),
    ],
)
def test_a_finished_model_is_delivered_as_it_is(tmp_path: Path, deliver: object, rate: dict) -> None:
    plan = plan_of(tmp_path, full=deliver, training={"lr_schedule": rate})
    (delivered,) = plan.deliveries
    assert not delivered.decays
    assert delivered.model is plan.staged.stages[-1]
    assert plan.branches == ()
    assert [run.name for run in plan.runs()] == ["staged"]


def test_a_stage_within_the_decay_of_the_run_still_decays_to_its_end(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, True, training={"lr_schedule": {"kind": "linear"}})
    assert learning_rate.rate_at(plan.deliveries[0].model.rate, 800) == pytest.approx(2e-3 * 0.6)
    assert learning_rate.rate_at(plan.deliveries[0].model.rate, 900) == 0


def test_after_a_thaw_all_trains_and_what_is_frozen_for_good_stays_so(tmp_path: Path) -> None:
    for freeze, lasts in (({"freeze": {"embeddings": True}}, True), ({"thaw": {"from": "top", "every": 200}}, False)):
        stage = {"name": "only", "model": {"num_layers": 2}, "until": {"tokens": 800}, "deliver": True, **freeze}
        changes = {"baseline": None, "training": CONSTANT}
        only, decay = make_plan(make_schedule(tmp_path, stages=[stage], **changes)).deliveries[0].run.stages
        assert only.freezing is not None
        assert decay.freezing == (only.freezing if lasts else None)


# --- the run ----------------------------------------------------------------------------------


def test_what_is_delivered_changes_no_key_of_the_run_and_is_trained_before_the_next_stage(tmp_path: Path) -> None:
    baseline = {"budgets": [1000]}
    plain, delivering = plan_of(tmp_path, baseline=baseline), plan_of(tmp_path, True, True, baseline=baseline)
    assert [one.key for one in delivering.staged.stages] == [one.key for one in plain.staged.stages]
    assert delivering.predicted_saving == plain.predicted_saving
    names = [run.name for run in delivering.runs()]
    assert names == ["deliver-small", "deliver-full", "staged", *(run.name for run in plain.baselines)]
    kinds = [delivering.kind_of(name) for name in names]
    assert kinds == ["branch", "branch", "staged", "baseline"]
    assert list(delivering.stages_by_key())[:2] == [one.key for one in delivering.deliveries[0].run.stages]


def test_the_saving_does_not_wait_for_what_is_delivered(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, True, baseline={"budgets": [1000]})
    records = finished(plan)
    del records[plan.deliveries[0].model.key]
    assert "yet" not in build_report(plan, records, {}).savings.verdict


def test_the_ledger_has_what_was_spent_on_it_and_claims_none_of_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, True)
    entries = {one.what: one for one in measure_ledger(plan, finished(plan), {}).entries}
    spent = entries["training delivered models"]
    assert (spent.flops, spent.is_claimed) == (plan.deliveries[0].model.flops, False)
    assert entries["training the stages"].flops == plan.staged.flops


# --- what it comes to -------------------------------------------------------------------------


def test_a_family_is_counted_once_where_its_models_share_stages(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, True, {"decay": 200})
    small, full = plan.deliveries
    family = delivered_family(plan)
    assert family.flops == plan.staged.flops + small.model.flops + full.model.flops
    apart = 900 * small.model.model_flops(10) + 2200 * full.model.model_flops(10)
    assert [one.scratch_flops for one in family.models] == [900 * small.model.model_flops(10),
                                                            2200 * full.model.model_flops(10)]  # fmt: skip
    assert family.apart_flops == apart
    assert family.saved == pytest.approx(1 - family.flops / apart)


def test_the_report_has_every_model_with_its_loss_before_and_after_the_decay(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, True)
    records = finished(plan)
    records[plan.deliveries[0].model.key] = make_record(plan.deliveries[0].model, 1.5)
    report = build_report(plan, records, {})
    (model,) = report.delivered.models
    assert (model.stage, model.name, model.decay, model.eval_loss_before, model.eval_loss) == (
        "small", "small-decay", 100, 2.0, 1.5,
    )  # fmt: skip
    assert report_from_json(to_json(report)) == report
    assert "## Delivered models" in markdown(report)
    assert known_stages(to_json(report)).all["small-decay"] == model.key


def test_a_report_without_any_says_nothing_of_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert "delivered" not in to_json(build_report(plan, finished(plan), {}))
    assert "delivered" not in plan_json(plan)


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, "yes", [True]])
def test_a_value_that_is_no_section(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match=r"stages\[0\].deliver: found .*; expected true, or a section"):
        plan_of(tmp_path, value)


def test_false_delivers_nothing(tmp_path: Path) -> None:
    assert plan_of(tmp_path, False).deliveries == ()


def test_beside_values_that_are_still_to_be_chosen(tmp_path: Path) -> None:
    baseline = {"budgets": [1000], "tune": {"training.optimizer.lr": [1e-3, 2e-3]}}
    with pytest.raises(InputError, match=r"stages\[0\].deliver: found beside baseline.tune"):
        plan_of(tmp_path, True, baseline=baseline)


def test_a_decay_whose_name_a_stage_has(tmp_path: Path) -> None:
    stages = [
        {"name": "a", "model": {"num_layers": 2}, "until": {"tokens": 800}, "deliver": True},
        {"name": "a-decay", "model": {"num_layers": 2}, "until": {"tokens": 800}},
    ]
    with pytest.raises(InputError, match=r"stages\[0\].deliver: found beside a stage 'a-decay'"):
        make_plan(make_schedule(tmp_path, stages=stages, training=CONSTANT, baseline=None))


def test_beside_an_adapter_that_has_not_decayed(tmp_path: Path) -> None:
    """The decay would train another adapter, of a model that has this one in it."""
    stages = [
        {"name": "base", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "tuned", "model": {"num_layers": 2}, "until": {"tokens": 800}, "adapter": {"lora": {"rank": 2}}},
    ]

    def planned(deliver: object, **training: object) -> Plan:
        changed = [stages[0], {**stages[1], "deliver": deliver, "training": training}]
        return make_plan(make_schedule(tmp_path, stages=changed, training=CONSTANT, baseline=None))

    with pytest.raises(InputError, match=r"stages\[1\].deliver: found beside an adapter"):
        planned(True)
    assert not planned({"decay": 0}).deliveries[0].decays
    assert not planned(True, lr_schedule={"kind": "linear"}).deliveries[0].decays


def test_in_the_schedule_of_a_sweep(tmp_path: Path) -> None:
    import yaml

    texts = tmp_path / "texts"
    texts.mkdir()
    stages = [{"name": "a", "model": {"num_layers": 2}, "until": {"tokens": 800}, "deliver": True}]
    schedule = make_schedule(texts, stages=stages, training=CONSTANT, baseline=None)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(schedule.content()))
    sweep = {"name": "s", "schedule": "base.yaml", "space": {"training.optimizer.lr": {"grid": [1e-3, 2e-3]}},
             "search": {"algorithm": "grid"}, "objective": {"metric": "eval_loss", "mode": "min"}}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(InputError, match=r"stages\[0\].deliver: found in the schedule of a sweep"):
        plan_sweep(load_any(tmp_path / "sweep.yaml", ()))
