"""Rotary positions as keys of a schedule: from stage to stage, in the key of a stage, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factories import make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.growth.checks import is_exact
from raystage.growth.rules import growth_map
from raystage.models.shape import ModelShape
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.reports.advice import warnings
from raystage.storage.jobs import continues

YARN = {"kind": "yarn", "factor": 4}


def plan_of(folder: Path, *models: dict, **model: object) -> Plan:
    """A stage of 400 tokens for each of `models`, over the file's `model`."""
    stages = [{"name": f"stage-{number}", "until": {"tokens": 400}, "model": one} for number, one in enumerate(models)]
    return make_plan(make_schedule(folder, model={"num_layers": 2, **model}, stages=stages, baseline=None))


def stages_of(*arguments: object, **model: object) -> tuple[StagePlan, ...]:
    return plan_of(*arguments, **model).staged.stages


def positions(stages: tuple[StagePlan, ...]) -> list[tuple[float, dict]]:
    return [(stage.shape.rope_theta, json.loads(stage.shape.rope_scaling or "{}")) for stage in stages]


def yarn(factor: float, origin: int, **more: float) -> dict:
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": origin, **more}


def test_a_later_stage_continues_with_what_a_stage_set(tmp_path: Path) -> None:
    """The file's value is that of the first stage."""
    models = [{}, {"rope_theta": "2M"}, {}, {"rope_theta": 5e6}]
    assert [theta for theta, _ in positions(stages_of(tmp_path, *models, rope_theta="50K"))] == [5e4, 2e6, 2e6, 5e6]
    assert [theta for theta, _ in positions(stages_of(tmp_path, {}, {"rope_theta": 500}))] == [1e4, 500]
    assert positions(stages_of(tmp_path, {"rope_theta": 99}, {}, rope_theta=5e4)) == [(99, {}), (99, {})]
    assert positions(stages_of(tmp_path, {"rope_theta": None}, rope_theta=5e4)) == [(1e4, {})]


def test_a_scaling_replaces_the_one_before_as_a_whole(tmp_path: Path) -> None:
    models = [
        {},
        {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2}},
        {},
        {"rope_scaling": {"kind": "yarn", "factor": 8}},
        {"rope_scaling": {"kind": "linear", "factor": 2}},
        {"rope_scaling": {"kind": "none"}},
    ]
    found = [scaling for _, scaling in positions(stages_of(tmp_path, *models))]
    first = yarn(4, 10, beta_fast=16, beta_slow=2)
    assert found == [{}, first, first, yarn(8, 10), {"rope_type": "linear", "factor": 2}, {}]


def test_it_refers_to_the_context_that_the_model_had_before_it_was_scaled(tmp_path: Path) -> None:
    longer = {"context_length": 20}
    models = [{}, {"context_length": 20, "rope_scaling": {"kind": "yarn", "factor": 2}},
              {"context_length": 100, "rope_scaling": YARN}]  # fmt: skip
    assert [one for _, one in positions(stages_of(tmp_path, *models))] == [{}, yarn(2, 10), yarn(4, 10)]
    # A longer context that was trained without a scaling counts.
    models = [{}, longer, {"context_length": 100, "rope_scaling": YARN}]
    assert positions(stages_of(tmp_path, *models))[2][1] == yarn(4, 20)
    written = {"rope_scaling": {**YARN, "original_context_length": "4K"}}
    assert positions(stages_of(tmp_path, {}, written))[1][1] == yarn(4, 4000)
    llama3 = {"kind": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    assert positions(stages_of(tmp_path, {}, {"rope_scaling": llama3}))[1][1]["original_max_position_embeddings"] == 10


def test_the_keys_know_them_and_nothing_of_what_is_as_before(tmp_path: Path) -> None:
    plain, *others = (
        [stage.key for stage in stages_of(tmp_path, {}, model)]
        for model in ({}, {"rope_theta": 1e4}, {"rope_scaling": {"kind": "none"}}, {"rope_theta": 2e4},
                      {"rope_scaling": YARN}, {"rope_scaling": {**YARN, "beta_fast": 16}})
    )  # fmt: skip
    assert others[0] == others[1] == plain
    seconds = {keys[1] for keys in others[2:]} | {plain[1]}
    assert len(seconds) == 4
    assert {keys[0] for keys in others} == {plain[0]}


def test_other_positions_are_a_change_of_the_function_and_of_no_weight(tmp_path: Path) -> None:
    """A stage with them needs no growth, gets a certificate, and is not exact, whatever else grows."""
    first, second = stages_of(tmp_path, {}, {"rope_theta": 2e4})
    assert second.growth.operator == "identity"
    assert not continues(first, second)
    assert not is_exact(first.shape, second.shape, "identity")
    rules = growth_map(first.shape, second.shape, "identity", "grow")
    assert {(rule.weights, rule.moments, rule.gradient) for rule in rules} == {("copy", "copy", "estimated")}
    assert is_exact(first.shape, first.shape, "identity")


def test_a_growth_may_come_with_them(tmp_path: Path) -> None:
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 400}},
        {"name": "full", "model": {"num_layers": 4, "rope_theta": "1M"}, "until": {"tokens": 400},
         "grow": {"operator": "stack"}, "freeze": {"layers": "old"}},
    ]  # fmt: skip
    full = make_plan(make_schedule(tmp_path, stages=stages, baseline=None)).staged.stages[1]
    assert (full.shape.num_layers, full.shape.rope_theta) == (4, 1e6)
    assert not is_exact(full.parent_shape, full.shape, "stack")


def test_the_baseline_has_those_of_the_last_stage(tmp_path: Path) -> None:
    stages = [
        {"name": "a", "until": {"tokens": 400}},
        {"name": "b", "until": {"tokens": 400}, "model": {"rope_theta": 99}},
    ]
    plan = make_plan(make_schedule(tmp_path, model={"num_layers": 2}, stages=stages))
    assert {stage.shape.rope_theta for run in plan.baselines for stage in run.stages} == {99}


def test_a_plan_as_json_has_them_and_makes_them_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {}, {"rope_theta": "2M", "rope_scaling": YARN})
    first, second = plan_json(plan)["stages"]
    assert ("rope_scaling" in first, first["rope_theta"]) == (False, 1e4)
    assert (json.loads(second["rope_scaling"]), second["rope_theta"]) == (yarn(4, 10), 2e6)
    assert second["lr"]["end"] == 0
    schedule = make_schedule(tmp_path, model={"num_layers": 2, "rope_scaling": {**YARN, "original_context_length": 5}})
    assert parse(schedule.content()) == schedule


def test_a_context_beyond_the_scaling_is_told(tmp_path: Path) -> None:
    def told(context: int) -> list[str]:
        plan = plan_of(tmp_path, {}, {"context_length": context, "rope_scaling": {"kind": "yarn", "factor": 2}})
        return [one.text for one in warnings(plan) if one.key == "stages[1].model.rope_scaling"]

    assert told(20) == []
    assert told(50) == ["is made for contexts of up to 20 tokens (2 times 10), and the stage has one of 50"]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"rope_scaling": YARN}, "model.rope_scaling.original_context_length: missing; expected the context length"),
        ({"rope_scaling": {"kind": "yarn"}}, "model.rope_scaling: found yarn without factor; expected it, for"),
        ({"rope_scaling": {"factor": 4}}, "model.rope_scaling.kind: missing; expected for example kind: yarn"),
        ({"rope_scaling": {"kind": "linear", "factor": 2, "beta_fast": 3}},
         "model.rope_scaling: found beta_fast: 3.0 with kind: linear; expected factor"),
        ({"rope_scaling": {"kind": "none", "factor": 2}},
         "model.rope_scaling: found factor: 2.0 with kind: none; expected no other key"),
        ({"rope_scaling": {"kind": "dynamic", "factor": 2}}, "model.rope_scaling.kind: found 'dynamic'; expected"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "model.rope_scaling.factor: found 0.5; expected at least 1"),
        ({"rope_scaling": {**YARN, "beta_fast": 1}},
         "model.rope_scaling: found beta_slow 1 and beta_fast 1; expected beta_fast to be the larger one"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}},
         "model.rope_scaling.rope_type: unknown key; did you mean model.rope_scaling.kind (yarn, linear, llama3 or no"),
        ({"rope_scaling": "yarn"}, "model.rope_scaling: found 'yarn'; expected a mapping of keys to values, for"),
        ({"rope_theta": 1}, "model.rope_theta: found 1; expected more than 1"),
        ({"rope_theta": "big"}, "model.rope_theta: found 'big'; expected a number such as 500000, 500K or 1.5B"),
        ({"rope_theta": "1e300"}, "model.rope_theta: found '1e300'; expected at most 1e+15"),
        ({"family": "gpt2", "rope_theta": 99},
         "model.rope_theta: found in a gpt2, which has no rotary positions; expected family: llama, mistral, qwen2,"),
        ({"family": "gpt2", "rope_scaling": YARN}, "model.rope_scaling: found in a gpt2, which has no rotary posit"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, model: dict, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, {}, **model)
    assert str(caught.value).startswith(problem), str(caught.value)


def test_a_stage_is_told_in_its_own_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^stages\[1\].model.rope_theta: found in a gpt2, which has no rotary"):
        plan_of(tmp_path, {}, {"rope_theta": 99}, family="gpt2")


def test_a_shape_from_a_manifest_of_before_is_that_of_a_schedule_without_them(tmp_path: Path) -> None:
    (stage,) = stages_of(tmp_path, {})
    assert ModelShape(**{k: v for k, v in vars(stage.shape).items() if not k.startswith("rope")}) == stage.shape
