"""Which parameters `freeze` means, what does not fit, and what it does to the keys."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.errors import InputError
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.operators import layer_origins
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.freezing import old_layers
from raystage.plans.initial import unit_flops
from raystage.plans.stage import StagePlan
from raystage.storage.jobs import continues


def plan_of(folder: Path, second: dict, **file: object) -> tuple[StagePlan, ...]:
    """2 layers, then what `second` says of 4, for 800 tokens each in steps of 100."""
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 800}, "grow": {"operator": "stack"}, **second},
    ]
    return make_plan(make_schedule(folder, **{"stages": stages, "baseline": None, **file})).staged.stages


@pytest.mark.parametrize(
    ("operator", "options", "old"),
    [
        ("stack", NO_OPTIONS, (0, 1)),  # 0 1 0 1
        ("interleave", NO_OPTIONS, (0, 2)),  # 0 0 1 1
        ("last", NO_OPTIONS, (0, 1)),
        ("random", NO_OPTIONS, (0, 1)),
        ("identity", NO_OPTIONS, (0, 2)),
        ("layers", GrowthOptions(layers=(1, 1, 0, 1)), (0, 2)),
        ("layers", GrowthOptions(layers=(1, 1, 1, 1)), (0,)),
    ],
)
def test_of_each_old_layer_the_first_that_goes_on_is_old(
    operator: str, options: GrowthOptions, old: tuple, tmp_path: Path
) -> None:
    small, full = plan_of(tmp_path, {})
    assert old_layers(layer_origins(small.shape, full.shape, operator, options)) == old


@pytest.mark.parametrize(
    ("freeze", "layers", "embeddings"),
    [
        ({"layers": "old"}, (0, 1), False),
        ({"layers": "new", "embeddings": True}, (2, 3), True),
        ({"layers": [3, 0, 3]}, (0, 3), False),
        ({"embeddings": True}, (), True),
        ({"layers": {"below": 3}}, (0, 1, 2), False),
        ({"layers": {"from": 1, "below": "3"}}, (1, 2), False),
        ({"layers": {"from": 2}}, (2, 3), False),
    ],
)
def test_what_is_frozen_by_name(freeze: dict, layers: tuple, embeddings: bool, tmp_path: Path) -> None:
    stage = plan_of(tmp_path, {"freeze": freeze})[1]
    expected = {p.name for p in parameters(stage.shape) if p.layer in layers}
    expected |= {"model.embed_tokens.weight"} if embeddings else set()
    assert stage.freezing.names(stage.shape) == expected


def test_patterns_name_parameters_anywhere(tmp_path: Path) -> None:
    stage = plan_of(tmp_path, {"freeze": {"parameters": ["*.mlp.up_proj.*", "lm_head.weight"], "layers": [3]}})[1]
    expected = {p.name for p in parameters(stage.shape) if p.layer == 3 or "up_proj" in p.name}
    assert stage.freezing.names(stage.shape) == expected | {"lm_head.weight"}


def thawing(stage: StagePlan) -> list[tuple[set[int | None], int]]:
    """The layers of each part that thaws, and its steps."""
    layer_of = {one.name: one.layer for one in parameters(stage.shape)}
    parts = stage.freezing.parts(stage.shape)
    steps = [{stage.frozen_steps[name] for name in part.names} for part in parts]
    return [({layer_of[name] for name in part.names}, *found) for part, found in zip(parts, steps, strict=True)]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"thaw": {"every": 150}}, [({3}, 2), ({2}, 3), ({1}, 5), ({0}, 6), ({None}, 8)]),
        ({"thaw": {"from": "bottom", "every": 100}}, [({None}, 1), ({0}, 2), ({1}, 3), ({2}, 4), ({3}, 5)]),
        ({"freeze": {"layers": {"below": 2}}, "thaw": {"every": 400}}, [({1}, 4), ({0}, 8)]),
        ({"freeze": {"parameters": ["lm_head*", "*.3.mlp.*"]}, "thaw": {"every": 300}}, [({None}, 3), ({3}, 6)]),
    ],
)
def test_layers_thaw_one_after_the_other(written: dict, expected: list, tmp_path: Path) -> None:
    assert thawing(plan_of(tmp_path, written)[1]) == expected


def test_without_a_freeze_all_but_the_last_norm_and_the_head_thaws(tmp_path: Path) -> None:
    stage = plan_of(tmp_path, {"thaw": {"every": 100}})[1]
    rest = {one.name for one in parameters(stage.shape)} - stage.freezing.names(stage.shape)
    assert rest == {"model.norm.weight", "lm_head.weight"}


def test_the_flops_of_a_stage_follow_what_is_frozen(tmp_path: Path) -> None:
    """Worked out step by step: each of its own frozen parameters."""
    stage = plan_of(tmp_path, {"thaw": {"every": 150}})[1]
    frozen = [frozenset(name for name, end in stage.frozen_steps.items() if step < end) for step in range(8)]
    by_step = [100 * unit_flops(stage.shape, None, 10, "tokens", names) for names in frozen]
    assert stage.flops == sum(by_step) < plan_of(tmp_path, {})[1].flops
    assert [stage.step_costs.of_step(step) for step in range(8)] == by_step
    assert [stage.step_costs.of_first(steps) for steps in range(9)] == [sum(by_step[:steps]) for steps in range(9)]
    ends = [sum(by_step[:steps]) for steps in range(1, 9)]
    assert [stage.step_costs.steps_for(flops) for flops in ends] == list(range(1, 9))
    assert [stage.step_costs.steps_for(flops + 1) for flops in ends[:-1]] == list(range(2, 9))


def test_a_length_in_flops_is_longer_while_parameters_are_frozen(tmp_path: Path) -> None:
    flops = plan_of(tmp_path, {})[1].flops
    for frozen in ({"freeze": {"layers": "old"}}, {"thaw": {"every": 300}}):
        stage = plan_of(tmp_path, {"until": {"flops": flops}, **frozen})[1]
        assert stage.steps > 8
        assert stage.step_costs.of_first(stage.steps - 1) < flops <= stage.flops


def test_rates_fall_with_the_depth(tmp_path: Path) -> None:
    stages = plan_of(tmp_path, {"training": {"optimizer": {"lr_by_depth": 0.5}}})
    assert stages[0].rate_factors == {}
    factors = {name.split(".")[2]: factor for name, factor in stages[1].rate_factors.items() if "mlp" in name}
    assert factors == {"0": 0.125, "1": 0.25, "2": 0.5, "3": 1.0}
    assert stages[1].rate_factors["model.embed_tokens.weight"] == 0.0625
    assert stages[1].rate_factors["lm_head.weight"] == stages[1].rate_factors["model.norm.weight"] == 1
    same = plan_of(tmp_path, {"training": {"optimizer": {"lr_by_depth": 1}}})
    assert same[1].key == plan_of(tmp_path, {})[1].key != stages[1].key


def test_baselines_have_one_rate_unless_they_say_so(tmp_path: Path) -> None:
    file = {"training": {"optimizer": {"lr_by_depth": 0.5}}}
    own = {"budgets": [1000], "training": {"optimizer": {"lr_by_depth": 0.7}}}
    for baseline, expected in (({}, 1), (own, 0.7)):
        plan = make_plan(make_schedule(tmp_path, **file, baseline=baseline))
        assert {run.stages[-1].training.optimizer.lr_by_depth for run in plan.baselines} == {expected}


def test_a_plan_in_json_says_it(tmp_path: Path) -> None:
    stages = [{"name": "one", "model": {"num_layers": 2}, "until": {"tokens": 800}, "freeze": {"layers": [1]}}]
    plan = plan_json(make_plan(make_schedule(tmp_path, stages=stages)))
    assert plan["stages"][0]["freeze"] == {"layers": (1,), "embeddings": False, "tokens": None}
    stages[0] |= {"freeze": {"parameters": "lm_head*"}, "thaw": {"every": 100}}
    plan = plan_json(make_plan(make_schedule(tmp_path, stages=stages)))
    assert plan["stages"][0]["freeze"] == {
        "layers": (), "embeddings": False, "tokens": None, "parameters": ("lm_head.weight",),
        "thaw": {"from": "top", "every": 100},
    }  # fmt: skip


@pytest.mark.parametrize(("lasts", "steps"), [(None, math.inf), (800, 8), (300, 3), (301, 4), (1, 1)])
def test_it_lasts_for_all_steps_that_begin_within_its_tokens(lasts: int | None, steps: float, tmp_path: Path) -> None:
    freeze = {"layers": "old", **({"for": {"tokens": lasts}} if lasts else {})}
    assert plan_of(tmp_path, {"freeze": freeze})[1].frozen_steps["model.layers.0.mlp.up_proj.weight"] == steps


def test_it_is_part_of_the_stages_key_by_what_it_means(tmp_path: Path) -> None:
    freezes = [None, {"layers": "old"}, {"layers": "new"}, {"layers": "old", "for": {"tokens": 300}},
               {"layers": "old", "embeddings": True}]  # fmt: skip
    plans = [plan_of(tmp_path, {"freeze": freeze}) for freeze in freezes]
    assert len({stages[0].key for stages in plans}) == 1
    assert len({stages[1].key for stages in plans}) == len(freezes)
    assert plan_of(tmp_path, {"freeze": {"layers": [1, 0]}})[1].key == plans[1][1].key
    assert plan_of(tmp_path, {})[1].key == plans[0][1].key


def test_baselines_freeze_nothing(tmp_path: Path) -> None:
    stages = [{"name": "one", "model": {"num_layers": 2}, "until": {"tokens": 800}, "freeze": {"layers": [0]}}]
    plan = make_plan(make_schedule(tmp_path, stages=stages))
    assert plan.staged.stages[0].freezing is not None
    assert all(stage.freezing is None for run in plan.baselines for stage in run.stages)


@pytest.mark.parametrize(("freeze", "goes_on"), [(None, True), ({"layers": [0]}, False)])
def test_after_it_a_worker_groups_parameters_anew(freeze: dict | None, goes_on: bool, tmp_path: Path) -> None:
    stages = [{"name": "one", "model": {"num_layers": 2}, "until": {"tokens": 800}, "freeze": freeze}]
    first = make_plan(make_schedule(tmp_path, stages=stages)).staged.stages[0]
    second = replace(first, key="second", parent_key=first.key, freezing=None)
    assert continues(first, second) is goes_on


REFUSED = [
    ({"freeze": {}}, "stages[1].freeze: found nothing to freeze; expected layers: old, new or a list such as [0, 1], "
     "embeddings: true, or parameters"),
    ({"freeze": {"layers": "odd"}},
     "stages[1].freeze.layers: found 'odd'; expected old, new, a list of layers such as [0, 1], or {below: 3}"),
    ({"freeze": {"layers": []}},
     "stages[1].freeze.layers: found []; expected old, new, a list of layers such as [0, 1], or {below: 3}"),
    ({"freeze": {"layers": [-1]}}, "stages[1].freeze.layers: found layer -1; expected 0 or more"),
    ({"freeze": {"layers": [4]}},
     "stages[1].freeze.layers: found 4 in a model of 4 layers; expected layers from 0 to 3"),
    ({"freeze": {"layer": [1]}}, "stages[1].freeze.layer: unknown key; did you mean 'layers'?"),
    ({"freeze": {"layers": "old", "for": {}}},
     "stages[1].freeze.for.tokens: missing; expected for example tokens: 50K"),
    ({"freeze": {"layers": "old", "for": {"tokens": 801}}},
     "stages[1].freeze.for.tokens: found 801 in a stage of 800; expected at most as many, or no for: all of the stage"),
    ({"grow": None, "model": {"num_layers": 2}, "freeze": {"layers": "new"}},
     "stages[1].freeze.layers: found 'new' in a stage without grow, which has neither old layers nor new ones; "
     "expected a list such as [0, 1]"),
    ({"model": {"num_layers": 2}, "freeze": {"layers": "new"}},
     "stages[1].freeze.layers: found 'new', but stack makes no new layers here; expected another choice"),
    ({"model": {"num_layers": 2, "ffn_size": 32}, "grow": {"operator": "duplicate"}, "freeze": {"layers": "old"}},
     "stages[1].freeze: found in a stage that changes ffn_size, after which every layer has new elements among the "
     "old; expected a growth of num_layers alone, or no freeze"),
    ({"grow": {"operator": "masked", "grow_tokens": 400}, "freeze": {"layers": "old"}},
     "stages[1].freeze: found with grow.operator: masked, whose new parts are trained along with the old ones; "
     "expected another operator, or no freeze"),
    ({"model": {"num_layers": 4, "vocab_size": 300}, "freeze": {"embeddings": True}},
     "stages[1].freeze.embeddings: found true in a stage that changes vocab_size, after which they have new rows "
     "among the old; expected false"),
    ({"model": {"num_layers": 4, "vocab_size": 300}, "freeze": {"parameters": "lm_head*"}},
     "stages[1].freeze: found lm_head.weight frozen in a stage that changes vocab_size, after which it has new rows; "
     "expected others"),
    ({"model": {"num_layers": 4, "vocab_size": 300}, "thaw": {"every": 100}},
     "stages[1].thaw: found model.embed_tokens.weight frozen in a stage that changes vocab_size, after which it has "
     "new rows; expected others"),
    ({"freeze": {"layers": {"below": 5}}},
     "stages[1].freeze.layers.below: found 5 in a model of 4 layers; expected at most as many"),
    ({"freeze": {"layers": {"from": 4}}},
     "stages[1].freeze.layers.from: found 4 in a model of 4 layers; expected less"),
    ({"freeze": {"layers": {"from": 2, "below": 2}}},
     "stages[1].freeze.layers: found from 2 below 2, between which no layer lies; expected a higher below"),
    ({"freeze": {"layers": {"below": -1}}}, "stages[1].freeze.layers: below: found -1; expected more than 0"),
    ({"freeze": {"layers": {"under": 1}}},
     "stages[1].freeze.layers: under: unknown key; known here: below, from"),
    ({"freeze": {"parameters": ["*.mlp.*", "*.mpl.*"]}},
     "stages[1].freeze.parameters: found '*.mpl.*', which is no parameter of this model; expected a name such as "
     "model.norm.weight, or a pattern of names with *"),
    ({"freeze": {"parameters": []}},
     "stages[1].freeze.parameters: found []; expected a pattern of names such as *.mlp.*, or a list of them"),
    ({"freeze": {"parameters": "*"}},
     "stages[1].freeze: found all parameters of the model, of which none would train; expected some that do"),
    ({"freeze": {"layers": "old", "for": {"tokens": 100}}, "thaw": {"every": 100}},
     "stages[1].thaw: found beside freeze.for, which ends the freeze of all parameters at once; expected one of them"),
    ({"thaw": {"every": 800}},
     "stages[1].thaw.every: found 800 in a stage of 800 tokens, in which nothing would begin to train; expected less"),
    ({"thaw": {"from": "head", "every": 100}}, "stages[1].thaw.from: found 'head'; expected 'top' or 'bottom'"),
    ({"thaw": {"from": "top"}}, "stages[1].thaw.every: missing; expected for example every: 200K"),
    ({"training": {"optimizer": {"lr_by_depth": 1.5}}},
     "stages[1].training.optimizer.lr_by_depth: found 1.5; expected at most 1"),
]  # fmt: skip


@pytest.mark.parametrize(("second", "said"), REFUSED, ids=[said.split(":")[0] for _, said in REFUSED])
def test_what_does_not_fit_is_refused(second: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        plan_of(tmp_path, second)
    assert str(refused.value) == said
