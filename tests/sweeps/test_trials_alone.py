"""What trials have in common is planned once; each has the plan, or the error, of its schedule by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.sweeps.config import Sweep
from raystage.sweeps.space import Config, applied
from raystage.sweeps.trials import Planner, configs
from sweeps import make_sweep

# Some of all that a later stage may depend on: the stages that there are, their names, teachers, text, shapes, unit of
# the rate, gates.
SPACE = """
stages[0]: {choice: [present, absent]}
stages[0].until.tokens: {integer: [400, 1200]}
stages[1].name: {choice: [middle, between]}
stages[1].grow.operator: {choice: [stack, identity, "num_layers=interleave, width=zero_pad"]}
stages[2].grow.operator: {choice: [stack, interleave, random]}
stages[2].objective: {choice: [causal_lm, {name: distillation, teacher: middle}]}
stages[2].model.num_layers: {choice: [8, 12]}
stages[2].training.lr_schedule: {choice: [{}, {from: current, kind: cosine}]}
stages[2].training.optimizer.weight_decay: {uniform: [0, 0.2]}
stages[2].accept: {choice: [null, {eval_loss_below: 3}]}
model.rope_theta: {choice: [10000, 20000]}
model.norm_eps: {choice: [null, 1e-5]}
data.validation_fraction: {choice: [0.5, 0.6]}
training.optimizer.lr: {choice: [1e-3, 2e-3]}
training.global_batch_tokens: {choice: [100, 200]}
seed: {choice: [0, 1]}
"""


def of_trial(planner: Planner, content: dict) -> object:
    """The staged run that a planner of many trials makes, or the error: what it says and of which key."""
    try:
        return planner._plan(content).staged
    except InputError as error:
        return error.key, error.problem


def alone(folder: Path, content: dict) -> object:
    try:
        return make_plan(parse({key: content[key] for key in content if key != "baseline"}, folder)).staged
    except InputError as error:
        return error.key, error.problem


def test_a_trial_has_the_plan_or_the_error_of_its_schedule_by_itself(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, SPACE, search={"algorithm": "random", "num_trials": 40})
    planner, found = Planner(sweep), []
    for number, config in enumerate(configs(sweep)):
        content = content_of(sweep, config, number)
        found.append(of_trial(planner, content))
        assert found[-1] == alone(tmp_path, content), config
    errors = [one for one in found if isinstance(one, tuple)]
    assert 4 < len(errors) < 36, "both plans and errors are compared"


def content_of(sweep: Sweep, config: Config, number: int) -> dict:
    return applied(sweep.base, config) | {"name": f"search-{number}"}


def test_what_trials_have_in_common_is_one_object(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "stages[2].until.tokens: {grid: [400, 500, 600]}\n"
                                 "stages[1].grow.operator: {grid: [stack, interleave]}")  # fmt: skip
    planner = Planner(sweep)
    plans = [planner.trial(number, config).plan.staged.stages for number, config in enumerate(configs(sweep))]
    for stages in plans[1:]:
        assert stages[0].shape is plans[0][0].shape
        assert stages[0].data is plans[0][0].data


def test_a_folder_of_the_name_of_a_stage_is_a_teacher_only_where_that_stage_is_absent(tmp_path: Path) -> None:
    """A known section is not taken where other stages make it mean something else."""
    (tmp_path / "middle").mkdir()
    space = "stages[1]: {choice: [present, absent]}"
    sweep = make_sweep(tmp_path, space, "stages[2].objective={name: distillation, teacher: middle}")
    planner = Planner(sweep)
    for number, config in enumerate([*configs(sweep), *configs(sweep)]):
        content = content_of(sweep, config, number)
        assert of_trial(planner, content) == alone(tmp_path, content), config


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("until", {"tokens": -5}, "stages[1].until.tokens"),
        ("grow", {"operator": "stak"}, "stages[1].grow.operator"),
        ("model", {"num_layer": 4}, "stages[1].model.num_layer"),
        ("training", {"optimizer": {"lr": "much"}}, "stages[1].training.optimizer.lr"),
        ("model", 5, "stages[1].model"),
    ],
)
def test_a_wrong_value_beside_known_sections_is_named(tmp_path: Path, path: str, value: object, key: str) -> None:
    sweep = make_sweep(tmp_path)
    planner = Planner(sweep)
    planner.trial(0, next(iter(configs(sweep))))
    content = yaml.safe_load(yaml.safe_dump(sweep.base))
    content["stages"][1][path] = value
    found = of_trial(planner, content)
    assert found == alone(tmp_path, content)
    assert found[0] == key
