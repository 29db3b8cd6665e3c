"""The space of a sweep: its points, what they make of a schedule, and what can be wrong with it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import yaml

from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.sweeps.space import Space, SpaceEntry, applied, describe, grid_points, read_space, sample
from sweeps import base


def space_of(text: str, content: dict[str, Any] | None = None) -> Space:
    entries = {path: SpaceEntry.model_validate(entry) for path, entry in yaml.safe_load(text).items()}
    return read_space(entries, content or base())


def points(text: str) -> list[str]:
    """The grid's points, without 'stages' and 'grow', to be read at a glance."""
    return [describe(point).replace("stages", "").replace(".grow", "") for point in grid_points(space_of(text))]


# --- the grid ---------------------------------------------------------------------------------


def test_a_grid_is_every_combination_once() -> None:
    text = "stages[0].until.tokens: {grid: [1K, 2K, 3K]}\ntraining.optimizer.lr: {choice: [1e-3, 2e-3]}"
    found = list(grid_points(space_of(text)))
    assert len(found) == 6 == len({describe(point) for point in found})
    assert found[1] == {"stages[0].until.tokens": "1K", "training.optimizer.lr": "2e-3"}


def test_a_path_counts_under_its_condition_alone() -> None:
    text = """
    stages[1].grow.block: {choice: [1, 2], when: {"stages[1].grow.operator": middle}}
    stages[1].grow.operator: {choice: [stack, middle]}
    """
    assert points(text) == [
        "[1].operator=stack",
        "[1].operator=middle, [1].block=1",
        "[1].operator=middle, [1].block=2",
    ]


def test_conditions_chain_and_take_lists() -> None:
    text = """
    seed: {grid: [1, 2, 3]}
    training.zero_stage: {grid: [0, 1], when: {seed: [1, 2]}}
    training.precision: {grid: [fp32, bf16], when: {training.zero_stage: 1}}
    """
    assert points(text) == [
        "seed=1, training.zero_stage=0",
        "seed=1, training.zero_stage=1, training.precision=fp32",
        "seed=1, training.zero_stage=1, training.precision=bf16",
        "seed=2, training.zero_stage=0",
        "seed=2, training.zero_stage=1, training.precision=fp32",
        "seed=2, training.zero_stage=1, training.precision=bf16",
        "seed=3",
    ]


def test_keys_of_a_stage_count_where_it_is_there() -> None:
    text = "stages[1]: {choice: [present, absent]}\nstages[1].until.tokens: {grid: [100, 200]}"
    assert points(text) == ["[1]=present, [1].until.tokens=100", "[1]=present, [1].until.tokens=200", "[1]=absent"]


def test_a_stage_that_has_become_the_first_has_nothing_to_grow_from() -> None:
    text = "stages[0]: {choice: [present, absent]}\nstages[1].grow.operator: {choice: [stack, interleave]}"
    assert points(text) == ["[0]=present, [1].operator=stack", "[0]=present, [1].operator=interleave", "[0]=absent"]


def test_a_range_has_no_grid() -> None:
    with pytest.raises(InputError, match="found uniform, of which a grid has no points; expected grid or choice"):
        list(grid_points(space_of("training.optimizer.lr: {uniform: [1e-3, 2e-3]}")))


# --- at random --------------------------------------------------------------------------------

RANGES = """
training.optimizer.weight_decay: {uniform: [0.1, 0.2]}
training.optimizer.lr: {loguniform: [1e-4, 1e-2]}
stages[0].until.tokens: {integer: [1K, 1.2K]}
stages[1].until.tokens: {log_integer: [1, 1000]}
seed: {choice: [3, 5]}
training.zero_stage: {choice: [1, 2], when: {seed: 5}}
"""


def test_samples_lie_within_their_ranges_and_conditions_hold() -> None:
    space, generator = space_of(RANGES), random.Random(1)
    for point in (sample(space, generator) for _ in range(500)):
        assert 0.1 <= point["training.optimizer.weight_decay"] <= 0.2
        assert 1e-4 <= point["training.optimizer.lr"] <= 1e-2
        assert point["stages[0].until.tokens"] in range(1000, 1201)
        assert point["stages[1].until.tokens"] in range(1, 1001)
        assert ("training.zero_stage" in point) is (point["seed"] == 5)
        parse(applied(base(), point))


def test_logarithmic_ranges_have_as_many_samples_in_every_decade() -> None:
    space, generator = space_of(RANGES), random.Random(2)
    drawn = [sample(space, generator) for _ in range(3000)]
    decades = Counter(len(str(point["stages[1].until.tokens"])) for point in drawn)
    assert all(850 < decades[digits] < 1150 for digits in (1, 2, 3))
    assert 1350 < sum(point["training.optimizer.lr"] < 1e-3 for point in drawn) < 1650


def test_samples_are_the_same_in_every_process() -> None:
    """Whatever the order of its sets and dictionaries is."""
    script = (
        "import random, sys, test_space as t;"
        "print(*(t.describe(t.sample(t.space_of(t.RANGES), random.Random(f'7/{n}'))) for n in range(5)), sep='\\n')"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    here = [describe(sample(space_of(RANGES), random.Random(f"7/{number}"))) for number in range(5)]
    assert runs[0].splitlines() == runs[1].splitlines() == here
    assert len(set(here)) == 5


# --- laid over the schedule -------------------------------------------------------------------


def test_a_config_is_laid_over_a_copy() -> None:
    content = base()
    changed = applied(content, {"stages[0].until.tokens": "1K", "training.optimizer.lr": 0.5})
    assert content == base()
    assert changed["stages"][0]["until"] == {"tokens": "1K"}
    assert changed["training"]["optimizer"] == {"lr": 0.5}
    assert changed["stages"][1:] == content["stages"][1:]


def test_indices_are_those_of_the_file_as_written() -> None:
    changed = applied(base(), {"stages[1]": "absent", "stages[2].until.tokens": 700})
    assert [(stage["name"], stage["until"]["tokens"]) for stage in changed["stages"]] == [("small", 800), ("full", 700)]


def test_what_has_become_the_first_stage_does_not_grow() -> None:
    changed = applied(base(), {"stages[0]": "absent"})
    assert [stage.get("grow") for stage in changed["stages"]] == [None, {"operator": "stack"}]
    assert "grow" in applied({**base(), "init": {"from": "a/model"}}, {"stages[0]": "absent"})["stages"][0]


def test_a_section_is_set_before_what_is_in_it() -> None:
    config = {"stages[1].grow.block": 2, "stages[1].grow": {"operator": "middle"}}
    assert applied(base(), config)["stages"][1]["grow"] == {"operator": "middle", "block": 2}


# --- what is wrong with it --------------------------------------------------------------------

# An entry of the space and what is said of it.
WRONG = [
    ("stages[0].until.token: {grid: [1]}",
     "space.stages[0].until.token: unknown key; did you mean 'tokens'?"),
    ("stage[0].until.tokens: {grid: [1]}", "space.stage[0].until.tokens: stage: unknown key; did you mean 'stages'?"),
    ("training.lr: {grid: [1]}", "space.training.lr: unknown key here; it belongs in training.optimizer"),
    ("training.optimizer.lr.x: {grid: [1]}",
     "space.training.optimizer.lr.x: training.optimizer.lr is a value; expected no key in it"),
    ("0.lr: {grid: [1]}", "space.0.lr: expected a path such as stages[1].until.tokens"),
    ("stages[3].until.tokens: {grid: [1]}",
     "space.stages[3].until.tokens: found [3], but stages has 3 entries, counted from 0"),
    ("stages[0].until.tokens: {grid: [10, 1.5]}",
     "space.stages[0].until.tokens: found 1.5; expected a whole number such as 500000, 500K or 1.5B"),
    ("stages[1].grow: {choice: [{operator: stack}, {operater: stack}]}",
     "space.stages[1].grow: with {'operater': 'stack'}: stages[1].grow.operater: unknown key; "
     "did you mean 'operator'?"),
    ("training.zero_stage: {integer: [0, 4]}", "space.training.zero_stage: found 4; expected at most 3"),
    ("training.optimizer.lr: {uniform: [-1, 1]}", "space.training.optimizer.lr: found -1.0; expected more than 0"),
    ("stages[1]: {choice: [here, absent]}",
     "space.stages[1]: found choice: ['here', 'absent']; expected choice: [present, absent] for a whole stage"),
    ("stages[0]: {grid: [present, absent]}\nstages[1]: {grid: [absent]}\nstages[2]: {grid: [absent]}",
     "space.stages[2]: every stage may be absent; expected one that is always there"),
    ("seed: {grid: [1, 2], when: {sed: 1}}\n", "space.seed.when: found 'sed'; expected another path of the space"),
    ("seed: {grid: [1, 2], when: {training.zero_stag: 1}}\ntraining.zero_stage: {grid: [0, 1]}",
     "space.seed.when: found 'training.zero_stag'; did you mean 'training.zero_stage'?"),
    ("seed: {grid: [1], when: {training.optimizer.lr: 1}}\ntraining.optimizer.lr: {uniform: [0.1, 0.2]}",
     "space.seed.when: training.optimizer.lr is a range; expected a path with a list of values"),
    ("seed: {grid: [1], when: {\"stages[1].grow.operator\": stak}}\nstages[1].grow.operator: {grid: [stack]}",
     "space.seed.when: found 'stak', which stages[1].grow.operator never is; did you mean 'stack'?"),
    ("seed: {grid: [1], when: {training.zero_stage: 2}}\ntraining.zero_stage: {grid: [0, 1]}",
     "space.seed.when: found 2, which training.zero_stage never is; expected one of 0, 1"),
    ("seed: {grid: [1], when: {training.zero_stage: 0}}\ntraining.zero_stage: {grid: [0], when: {seed: 1}}",
     "space.seed.when: found seed, training.zero_stage, which count only under each other"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(text)
    assert str(caught.value) == message


def test_a_number_that_is_whole_at_both_ends_but_not_between_is_refused() -> None:
    with pytest.raises(InputError, match=r"space\.stages\[0\]\.until\.tokens: found 1.*; expected a whole number"):
        space_of("stages[0].until.tokens: {uniform: [1000, 2000]}")
