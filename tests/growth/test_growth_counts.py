"""Step counts of elements: through any growth, into a manifest and back, and in a stage's key."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factories import make_schedule
from growths import GROWTHS, GrowthCase, for_each, growth
from raystage.growth.apply import Grown, is_new
from raystage.growth.counts import (
    HeadStarts,
    as_runs,
    from_runs,
    grown_head_starts,
    is_settled,
    unsettled,
)
from raystage.models.manifest import _check_head_starts
from raystage.models.shape import ModelShape, parameters
from raystage.planning.build import make_plan
from raystage.storage.checkpoint import ParameterEntry, _plain
from raystage.train.optimizer import head_starts_in

STEP = 7
every_growth = for_each(GROWTHS)


def made_up_starts(shape: ModelShape) -> dict[str, HeadStarts]:
    """Every third index of every axis came after 2 steps, every fifth after 4."""
    return {
        one.name: tuple(
            tuple(4 if i % 5 == 3 else 2 if i % 3 == 1 else 0 for i in range(size)) if size > 4 else (0,) * size
            for size in one.shape
        )
        for one in parameters(shape)
    }


@every_growth
def test_an_element_keeps_its_head_start_through_a_growth_and_a_new_one_has_all_steps(case: GrowthCase) -> None:
    """Element by element, as the moments go: with every factor 1, of head starts in their place."""
    starts = made_up_starts(case.source)
    flat = {name: head_starts_in(axes, 0, math.prod(map(len, axes))) for name, axes in starts.items()}
    found = grown_head_starts(case.map(), starts, dict.fromkeys(starts, STEP))
    rules = tuple(replace(rule, axes=tuple(replace(a, gradient=()) for a in rule.axes)) for rule in case.map())
    grown = Grown(rules, lambda name, state, start, stop: flat[name][start:stop] + 1.0, seed=0)
    for rule in rules:
        if rule.moments != "copy":
            assert rule.target not in found
            continue
        new = is_new(rule, 0, rule.numel)
        expected = np.where(new, STEP, grown.slice(rule.target, "exp_avg", 0, rule.numel) - 1)
        axes = found.get(rule.target, tuple((0,) * size for size in rule.shape))
        np.testing.assert_array_equal(head_starts_in(axes, 0, rule.numel), expected, err_msg=rule.target)
        np.testing.assert_array_equal(head_starts_in(axes, rule.numel // 3, rule.numel), expected[rule.numel // 3 :])


@every_growth
def test_a_manifest_holds_them_in_short(case: GrowthCase) -> None:
    starts = made_up_starts(case.source)
    for name, axes in grown_head_starts(case.map(), starts, dict.fromkeys(starts, STEP)).items():
        entry = ParameterEntry(name, tuple(map(len, axes)), "float32", STEP, as_runs(axes))
        read = json.loads(json.dumps(entry, default=_plain))
        _check_head_starts(read["head_starts"], read["shape"], STEP, name)
        assert from_runs(read["head_starts"], entry.shape) == axes


def test_runs_by_hand() -> None:
    case = growth("zero_pad", ffn_size=40)
    found = grown_head_starts(case.map(), {}, dict.fromkeys(made_up_starts(case.source), STEP))
    runs = {name.removeprefix("model.layers.0.mlp."): as_runs(axes) for name, axes in found.items() if ".0." in name}
    ends = ((24, 0), (16, STEP))
    assert runs == {"gate_proj.weight": (ends, ()), "up_proj.weight": (ends, ()), "down_proj.weight": ((), ends)}


def test_of_what_is_old_a_manifest_says_nothing() -> None:
    entry = ParameterEntry("weight", (2, 3), "float32", STEP, as_runs(((0, 0), (0, 0, 0))))
    assert json.dumps(entry, default=_plain) == '{"name": "weight", "shape": [2, 3], "dtype": "float32", "step": 7}'


@pytest.mark.parametrize(
    "wrong",
    [None, [], [[]], [[[2, 7]], [], []], [[[1, 7]], []], [[[2, 8]], []], [[[0, 1], [2, 7]], []], [[[2.0, 7]], []],
     [[[3, 7]], []], [[[2, 7, 1]], []], [[7], []], [{"a": 1}, []], [[[10**30, 7]], []]],
    ids=str,
)  # fmt: skip
def test_damaged_ones_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"head_starts: found .*; expected "):
        _check_head_starts(wrong, [2, 3], STEP, "parameters[0].head_starts")


def test_they_are_dropped_once_they_make_no_difference() -> None:
    starts = ((0, 50, 100), (0, 0))
    betas = (0.9, 0.95)
    first = next(own for own in range(1, 1000) if is_settled(own, 50, betas))
    assert unsettled(starts, 50 + first - 2, betas) == starts
    assert unsettled(starts, 50 + first - 1, betas) == ((0, 0, 100), (0, 0))
    assert unsettled(starts, 1000, betas) == ((0, 0, 0), (0, 0))
    assert unsettled(starts, 150, ()) == ((0, 0, 0), (0, 0))  # SGD's steps do not depend on them


# --- keys ---------------------------------------------------------------------------------------


def has_another_key(folder: Path, grow: dict, model: dict, tokens: int = 1200, **training: object) -> bool:
    """Whether the key of a stage of so many tokens (100 a step) is another than before there were counts."""
    stages = [
        {"name": "first", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "second", "model": {"num_layers": 2, **model}, "until": {"tokens": tokens}, "grow": grow},
    ]
    stage = make_plan(make_schedule(folder, stages=stages, training=training, baseline=None)).staged.stages[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raystage.plans.keys._leaves_counts", lambda stage, steps: False)
        before = make_plan(make_schedule(folder, stages=stages, training=training, baseline=None)).staged.stages[1]
    return stage.key != before.key


@pytest.mark.parametrize(
    ("grow", "model", "tokens", "training", "expected"),
    [
        ({"operator": "zero_pad"}, {"ffn_size": 32}, 1200, {}, True),
        ({"operator": "zero_pad"}, {"ffn_size": 32}, 20_000, {}, False),
        ({"operator": "zero_pad"}, {"ffn_size": 32}, 20_000, {"optimizer": {"betas": [0.9, 0.999]}}, True),
        ({"operator": "zero_pad"}, {"ffn_size": 32}, 1200, {"optimizer": {"name": "sgd"}}, False),
        ({"operator": "zero_pad", "optimizer_state": "reset"}, {"ffn_size": 32}, 1200, {}, False),
        ({"operator": "zero_pad", "optimizer_state": "keep"}, {"ffn_size": 32}, 1200, {}, False),
        ({"operator": "learned"}, {"ffn_size": 32}, 1200, {}, False),
        ({"operator": "aki"}, {"ffn_size": 32}, 1200, {}, False),
        ({"operator": "stack"}, {"num_layers": 4}, 1200, {}, False),
        ({"operator": "random"}, {"num_layers": 4, "vocab_size": 300}, 1200, {}, True),
        ({"operator": "stack"}, {"num_layers": 4, "context_length": 20}, 1200, {}, False),  # rotary
    ],
)
def test_only_stages_that_leave_counts_behind_have_another_key(
    tmp_path: Path, grow: dict, model: dict, tokens: int, training: dict, expected: bool
) -> None:
    assert has_another_key(tmp_path, grow, model, tokens, **training) is expected
