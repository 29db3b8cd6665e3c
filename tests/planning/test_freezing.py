"""Which parameters `freeze` means, what does not fit, and what it does to the keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_schedule
from raystage.cli.plan_json import plan_json
from raystage.errors import InputError
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.operators import layer_origins
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.freezing import old_layers
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
    ],
)
def test_what_is_frozen_by_name(freeze: dict, layers: tuple, embeddings: bool, tmp_path: Path) -> None:
    stage = plan_of(tmp_path, {"freeze": freeze})[1]
    expected = {p.name for p in parameters(stage.shape) if p.layer in layers}
    expected |= {"model.embed_tokens.weight"} if embeddings else set()
    assert stage.freezing.names(stage.shape) == expected


def test_a_plan_in_json_says_it(tmp_path: Path) -> None:
    stages = [{"name": "one", "model": {"num_layers": 2}, "until": {"tokens": 800}, "freeze": {"layers": [1]}}]
    plan = plan_json(make_plan(make_schedule(tmp_path, stages=stages)))
    assert plan["stages"][0]["freeze"] == {"layers": (1,), "embeddings": False, "tokens": None}


@pytest.mark.parametrize(("lasts", "steps"), [(None, 8), (800, 8), (300, 3), (301, 4), (1, 1)])
def test_it_lasts_for_all_steps_that_begin_within_its_tokens(lasts: int | None, steps: int, tmp_path: Path) -> None:
    freeze = {"layers": "old", **({"for": {"tokens": lasts}} if lasts else {})}
    assert plan_of(tmp_path, {"freeze": freeze})[1].frozen_steps == steps


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
     "or embeddings: true"),
    ({"freeze": {"layers": "odd"}},
     "stages[1].freeze.layers: found 'odd'; expected old, new or a list of layers such as [0, 1]"),
    ({"freeze": {"layers": []}},
     "stages[1].freeze.layers: found []; expected old, new or a list of layers such as [0, 1]"),
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
]  # fmt: skip


@pytest.mark.parametrize(("second", "said"), REFUSED, ids=[said.split(":")[0] for _, said in REFUSED])
def test_what_does_not_fit_is_refused(second: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        plan_of(tmp_path, second)
    assert str(refused.value) == said
