"""How a run is laid out: positions, rates, budgets, jobs. Keys are in test_stage_keys, errors in test_bad_input."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import parse
from raystage.growth.depth import GrowthOptions
from raystage.models.shape import flops_per_token
from raystage.planning.build import make_plan
from raystage.plans.learning_rate import Rewarming, rate_at, stable_end
from raystage.plans.plan import Plan, RunPlan
from raystage.storage.jobs import continues, jobs

BATCH = 100  # of the schedule in factories


def plan_of(folder: Path, kind: str, budgets: list, warmup: float = 100, decay: float = 0.2, low: float = 0.0) -> Plan:
    rate = {"kind": kind, "warmup": warmup, "decay": decay, "min_lr_ratio": low}
    training = {"optimizer": {"lr": 2e-3}, "lr_schedule": rate}
    return make_plan(make_schedule(folder, training=training, baseline={"budgets": budgets}))


def keys_of(run: RunPlan) -> list[str]:
    return [stage.key for stage in run.stages]


def ends_of(run: RunPlan) -> list[int]:
    return [stage.end for stage in run.stages]


# kind, warm-up, decay, lowest rate, budgets, then the ends of every baseline's stages
CHAINS = [
    ("wsd", 100, 0.2, 0.0, [1000, 1500, 2000], [[800, 1000], [800, 1200, 1500], [800, 1200, 1600, 2000]]),
    ("wsd", 100, 0.2, 0.0, [2000, 1000], [[800, 1000], [800, 1600, 2000]]),  # in any order
    ("wsd", 0, 0.2, 0.0, [1000, 1500], [[800, 1000], [800, 1200, 1500]]),
    ("wsd", 100, 0.5, 0.0, [1000, 1100], [[500, 1000], [500, 500 + 0, 1100]]),  # closer than a decay
    ("wsd", 100, 300, 0.0, [1000, 1100], [[700, 1000], [700, 800, 1100]]),  # a decay in tokens
    ("wsd", 100, 0.23, 0.0, [1000], [[700, 1000]]),  # 770 is within a step: the decay is not cut
    ("wsd", 100, 0, 0.0, [1000, 1500], [[1000], [1000, 1500]]),  # constant after all
    ("wsd", 100, 0.2, 1.0, [1000, 1500], [[1000], [1000, 1500]]),
    ("constant", 100, 0.2, 0.0, [1000, 1500, 2000], [[1000], [1000, 1500], [1000, 1500, 2000]]),
    ("wsd", 100, 900, 0.0, [1000, 1500], [[1000], [600, 1500]]),  # the first decays right after its warm-up
    ("wsd", 0, 1000, 0.0, [1000], [[1000]]),
    ("wsd", 0.1, 0.2, 0.0, [1000, 1500], [[800, 1000], [1200, 1500]]),  # warm-ups of their own: nothing to share
    ("wsd", 100, 0.2, 0.0, [200, 1000], [[100, 200], [100, 800, 1000]]),
    ("cosine", 100, 0.2, 0.0, [1000, 1500], [[1000], [1500]]),
    ("linear", 100, 0.2, 0.0, [1000, 1500], [[1000], [1500]]),
    ("cosine", 0, 0.2, 0.0, [1000, 1500], [[1000], [1500]]),
]


@pytest.mark.parametrize(("kind", "warmup", "decay", "low", "budgets", "ends"), CHAINS)
def test_baselines_are_cut_where_they_part(
    kind: str, warmup: float, decay: float, low: float, budgets: list[int], ends: list[list[int]], tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, kind, budgets, warmup, decay, low)
    assert [ends_of(run) for run in plan.baselines] == [sorted(set(expected)) for expected in ends]
    for run, budget in zip(plan.baselines, sorted(budgets), strict=True):
        assert run.duration == budget
        assert run.name == f"baseline-{budget}"
        assert sum(stage.steps for stage in run.stages) * BATCH == budget
        assert [stage.start for stage in run.stages] == [0, *ends_of(run)[:-1]]
        assert all(stage.end <= stable_end(stage.rate) for stage in run.stages[:-1])
        assert all(stage.growth is None for stage in run.stages)
        assert all(stage.shape == plan.staged.stages[-1].shape for stage in run.stages)


@pytest.mark.parametrize(("kind", "warmup", "decay", "low", "budgets", "ends"), CHAINS)
def test_pieces_are_shared_where_and_only_where_their_rates_agree(
    kind: str, warmup: float, decay: float, low: float, budgets: list[int], ends: list[list[int]], tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, kind, budgets, warmup, decay, low)
    pieces = [stage for run in plan.baselines for stage in run.stages]
    for one in pieces:
        for other in pieces:
            same_stretch = (one.start, one.end) == (other.start, other.end)
            upto = range(0, one.end, BATCH // 2)
            same_rates = same_stretch and all(rate_at(one.rate, t) == rate_at(other.rate, t) for t in upto)
            assert (one.key == other.key) is same_rates


def test_budgets_share_their_trunk_under_wsd_and_nothing_under_cosine(tmp_path: Path) -> None:
    short, middle, long = plan_of(tmp_path, "wsd", [1000, 1500, 2000]).baselines
    assert keys_of(short)[:1] == keys_of(middle)[:1] == keys_of(long)[:1]
    assert keys_of(middle)[:2] == keys_of(long)[:2]
    assert not {short.stages[-1].key, middle.stages[-1].key} & {*keys_of(long)}
    for kind in ("cosine", "linear"):
        runs = plan_of(tmp_path, kind, [1000, 1500, 2000]).baselines
        assert len({key for run in runs for key in keys_of(run)}) == 3


def test_a_shared_piece_costs_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "wsd", [1000, 1500, 2000])
    per_token = flops_per_token(plan.staged.stages[-1].shape)
    assert plan.baseline_flops_shared() == (1600 + 200 + 300 + 400) * per_token
    assert sum(run.flops for run in plan.baselines) == 4500 * per_token


def test_budgets_are_rounded_up_to_steps(tmp_path: Path) -> None:
    assert [run.duration for run in plan_of(tmp_path, "wsd", [901, 1099]).baselines] == [1000, 1100]


def test_without_baselines(tmp_path: Path) -> None:
    assert make_plan(make_schedule(tmp_path, baseline=None)).baselines == ()


def test_the_staged_run_by_hand(tmp_path: Path) -> None:
    plan = make_plan(make_schedule(tmp_path), "other")
    small, full = plan.staged.stages
    assert (plan.name, plan.staged.name) == ("other", "staged")
    assert (small.start, small.end, full.start, full.end) == (0, 800, 800, 2000)
    assert (small.steps, full.start_steps, full.steps) == (8, 8, 12)
    assert full.start_flops == small.end_flops == small.flops == 800 * flops_per_token(small.shape)
    assert full.end_flops == plan.staged.flops == small.flops + full.flops
    assert (small.growth, full.growth_operator, full.growth.optimizer_state) == (None, "stack", "grow")
    assert (small.parent_shape, full.parent_shape) == (None, small.shape)
    assert plan.scratch_flops == 2000 * flops_per_token(full.shape)
    assert plan.predicted_saving == pytest.approx(1 - plan.staged.flops / plan.scratch_flops)
    assert (small.checkpoint_every, full.checkpoint_every) == (200, 300)
    assert small.rate == full.rate


@pytest.mark.parametrize(
    ("until", "steps"),
    [({"tokens": 800}, 8), ({"tokens": 801}, 9), ({"steps": 5}, 5), ({"flops": 1}, 1), ({"flops": 10**20}, None)],
)
def test_a_stage_ends_with_the_step_that_reaches_its_budget(until: dict, steps: int | None, tmp_path: Path) -> None:
    stages = [{"name": "only", "model": {"num_layers": 2}, "until": until, "training": {"lr_schedule": {"warmup": 0}}}]
    (stage,) = make_plan(make_schedule(tmp_path, stages=stages)).staged.stages
    if steps is None:
        per_step = BATCH * flops_per_token(stage.shape)
        assert (stage.steps - 1) * per_step < until["flops"] <= stage.steps * per_step
    else:
        assert stage.steps == steps


@pytest.mark.parametrize("kind", ["wsd", "cosine", "linear", "constant"])
def test_a_split_stage_sees_the_rates_of_a_whole_one(kind: str, tmp_path: Path) -> None:
    def staged(*lengths: int) -> RunPlan:
        stages = [
            {"name": f"part-{number}", "model": {"num_layers": 2}, "until": {"tokens": tokens}}
            for number, tokens in enumerate(lengths)
        ]
        training = {"lr_schedule": {"kind": kind, "warmup": 150, "decay": 0.3}}
        return make_plan(make_schedule(tmp_path, stages=stages, training=training)).staged

    whole, split = staged(2000), staged(700, 800, 500)
    for stage in split.stages:
        middles = [stage.start + BATCH * step + BATCH / 2 for step in range(stage.steps)]
        assert [rate_at(stage.rate, at) for at in middles] == [rate_at(whole.stages[0].rate, at) for at in middles]


def test_a_stage_with_a_rate_of_its_own(tmp_path: Path) -> None:
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {
            "name": "full",
            "model": {"num_layers": 4},
            "until": {"tokens": 1200},
            "grow": {"operator": "stack"},
            "training": {"lr_schedule": {"warmup": 200}},
        },
    ]
    small, full = make_plan(make_schedule(tmp_path, stages=stages)).staged.stages
    assert [(piece.start, piece.end) for piece in full.rate] == [(800, 1000), (1000, 1760), (1760, 2000)]
    assert [(piece.start, piece.end) for piece in small.rate] == [(0, 100), (100, 1600), (1600, 2000)]


def test_one_job_has_all_that_the_same_workers_can_do(tmp_path: Path) -> None:
    """Another number of workers takes other processes; growth and other ZeRO stages do not."""
    stages = [
        {"name": "a", "model": {"num_layers": 1}, "until": {"steps": 10}},
        {"name": "b", "model": {"num_layers": 2}, "until": {"steps": 10}, "grow": {"operator": "stack"},
         "training": {"zero_stage": 3}},
        {"name": "c", "until": {"steps": 10}, "model": {"num_layers": 2}, "training": {"workers": 2}},
    ]  # fmt: skip
    plan = make_plan(make_schedule(tmp_path, stages=stages))
    assert [[stage.name for stage in job] for job in jobs(plan.staged.stages)] == [["a", "b"], ["c"]]


def test_an_engine_goes_on_where_nothing_changes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "wsd", [1000, 1500])
    first, second = plan.baselines[1].stages[:2]
    assert continues(first, second)
    assert not continues(second, first)
    assert not continues(*plan.staged.stages)


def test_the_same_schedule_gives_the_same_plan(tmp_path: Path) -> None:
    assert make_plan(make_schedule(tmp_path)) == make_plan(make_schedule(tmp_path))


def test_a_stage_that_changes_nothing_is_entered_by_the_identity(tmp_path: Path) -> None:
    stages = [
        {"name": name, "model": {"num_layers": 2}, "until": {"tokens": 200}, "training": {"workers": workers}}
        for name, workers in (("one", 1), ("two", 2))
    ]
    _, second = make_plan(make_schedule(tmp_path, stages=stages)).staged.stages
    assert (second.growth.operator, second.growth.optimizer_state) == ("identity", "grow")


def test_a_run_may_start_without_layers(tmp_path: Path) -> None:
    stages = [
        {"name": "none", "model": {"num_layers": 0}, "until": {"tokens": 800}},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 1200}, "grow": {"operator": "random"}},
    ]
    plan = make_plan(make_schedule(tmp_path, stages=stages))
    none, full = plan.staged.stages
    assert (none.shape.num_layers, none.num_params) == (0, 2 * 257 * 8 + 8)
    assert none.flops == 800 * 6 * (257 * 8 + 8) < full.flops
    assert full.growth_operator == "random"
    assert plan.predicted_saving > 0


def test_the_options_of_a_growth_are_complete(tmp_path: Path) -> None:
    def options(**grow: object) -> GrowthOptions:
        stages = [
            {"name": "small", "model": {"num_layers": 4}, "until": {"tokens": 200}},
            {"name": "full", "model": {"num_layers": 6}, "until": {"tokens": 200}, "grow": grow},
        ]
        return make_plan(make_schedule(tmp_path, stages=stages)).staged.stages[1].growth.options

    assert options(operator="last") == GrowthOptions()
    assert options(operator="middle") == options(operator="middle", block="2") == GrowthOptions(block=2)
    layers = (0, 1, 2, 3, 0, 1)
    assert options(operator="identity", layers=list(layers)) == GrowthOptions(layers=layers)


def test_tokenizers_are_known_by_their_content(tmp_path: Path) -> None:
    for name in ("texts", "tokenizer"):
        (tmp_path / name).mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    stages = [{"name": "only", "model": {"num_layers": 2}, "until": {"steps": 5}}]
    schedule = make_schedule(tmp_path / "texts", stages=stages)
    assert make_plan(schedule).staged.stages[0].data.tokenizer_fingerprint == "bytes"
    content = schedule.model_dump(exclude_unset=True)
    content["data"]["tokenizer"], content["model"]["vocab_size"] = str(tmp_path / "tokenizer"), 5
    data = make_plan(parse(content)).staged.stages[0].data
    assert data.tokenizer_fingerprint.startswith("sha256:")
    assert data.tokenizer == str(tmp_path / "tokenizer")


def test_a_rewarm_is_part_of_the_growth_where_there_is_one(tmp_path: Path) -> None:
    written = {"stages": [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "wide", "model": {"num_layers": 2, "ffn_size": 32}, "until": {"tokens": 400},
         "grow": {"operator": "rms", "rewarm": {"tokens": 200}}},
        {"name": "deep", "model": {"num_layers": 4, "ffn_size": 32}, "until": {"tokens": 400},
         "grow": {"operator": "identity"}},
    ]}  # fmt: skip
    plan = make_plan(make_schedule(tmp_path, **written))
    assert [stage.growth and stage.growth.rewarm for stage in plan.staged.stages] == [None, Rewarming(1.3, 200), None]
    shown = [stage["growth"] for stage in plan_json(plan)["stages"]]
    assert shown[1] == {"operator": "rms", "optimizer_state": "grow", "rewarm": {"factor": 1.3, "tokens": 200}}
    assert "rewarm" not in shown[2]
