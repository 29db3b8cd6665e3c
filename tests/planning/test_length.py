"""How long a stage is at most. Figures are worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from raystage.config.conditions import Until
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.planning.length import cap_steps, placed_mixing
from raystage.plans.open_ends import is_open, reads_clock
from raystage.plans.plan import Plan
from raystage.plans.step_costs import StepCosts
from raystage.plans.steps import Doubling, doubling_steps
from raystage.results.record import Evaluation
from raystage.results.stopping import Seen, fired

# Steps of 100 tokens of 70 FLOPs.
STEPS = doubling_steps(Doubling(100), Doubling(10))


def cost(context_length: int) -> int:
    return 70


COSTS = StepCosts(STEPS, ((0, cost),))
PLATEAU = {"plateau": {"min_delta": 0.01, "patience": 3}}


def until(**written: object) -> Until:
    return Until.model_validate(written)


def evaluated(*losses: float) -> tuple[Evaluation, ...]:
    """The first on entering; after it one per 100 tokens of 10 FLOPs each, in a run that begins here."""
    return tuple(Evaluation(100 * n, n, 1000 * n, float(n), loss) for n, loss in enumerate(losses))


def seen(*losses: float, tokens: int = 0, steps: int = 0, flops: int = 0, seconds: float = 0.0) -> Seen:
    return Seen(tokens, steps, flops, seconds, evaluated(*losses))


# --- shares of a run ---------------------------------------------------------------------------


def shared(folder: Path, length: dict, *shares: float, **baseline: list) -> Plan:
    """Stages of so many shares of a run, of 1 layer and more."""
    stages = [
        {"name": f"of{index}", "model": {"num_layers": 1 + index}, "until": {"share": share}}
        | ({"grow": {"operator": "stack"}} if index else {})
        for index, share in enumerate(shares)
    ]
    return make_plan(
        make_schedule(
            folder, stages=stages, length=length, baseline={"budgets": None, **baseline} if baseline else None
        )
    )


def test_stages_are_shares_of_the_run(tmp_path: Path) -> None:
    plan = shared(tmp_path, {"tokens": 10_000}, 0.25, 0.75)
    batch = plan.staged.stages[0].training.global_batch_tokens
    assert [stage.steps for stage in plan.staged.stages] == [-(-2_500 // batch), -(-7_500 // batch)]


def test_tokens_per_parameter_are_those_of_the_last_model(tmp_path: Path) -> None:
    plan = shared(tmp_path, {"tokens_per_parameter": 20}, 0.5, 0.5, budgets_per_parameter=[5, 10])
    size, batch = plan.staged.stages[-1].num_params, plan.staged.stages[0].training.global_batch_tokens
    assert plan.staged.stages[0].num_params < size
    assert [stage.steps for stage in plan.staged.stages] == [-(-10 * size // batch)] * 2
    assert [run.duration for run in plan.baselines] == [-(-times * size // batch) * batch for times in (5, 10)]
    in_tokens = shared(tmp_path, {"tokens": 20 * size}, 0.5, 0.5, budgets=[5 * size, 10 * size])
    assert plan.stage_keys() == in_tokens.stage_keys()


def test_of_a_share_and_tokens_the_smaller_one_counts(tmp_path: Path) -> None:
    written = {"name": "one", "model": {"num_layers": 1}, "until": {"share": 0.5, "tokens": 2_000}}
    (stage,) = make_plan(
        make_schedule(tmp_path, stages=[written], length={"tokens": 10_000}, baseline=None)
    ).staged.stages
    assert stage.steps == -(-2_000 // stage.training.global_batch_tokens)


# --- what is fixed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        ({"tokens": 800}, 8),
        ({"tokens": 801}, 9),  # a stage ends with the step that reaches its budget
        ({"steps": 5}, 5),
        ({"flops": 14_000}, 2),  # a step has 100 tokens of 70 FLOPs
        ({"flops": 14_001}, 3),
        ({"tokens": 800, "steps": 5}, 5),  # the smallest counts
        ({"tokens": 800, "flops": 14_000, "steps": 5}, 2),
        ({"any": [{"tokens": 800}, {"steps": 5}]}, 5),
        ({"all": [{"tokens": 800}, {"steps": 5}]}, 8),
        ({"all": [{"tokens": 800}, {"steps": 5}], "steps": 7}, 7),
        ({"any": [{"all": [{"steps": 3}, {"any": [{"steps": 9}, {"steps": 6}]}]}]}, 6),
        ({"tokens": 800, **PLATEAU}, 8),
        ({"tokens": 800, "any": [PLATEAU, {"steps": 5}]}, 5),
        ({"tokens": 800, "all": [PLATEAU, {"steps": 5}]}, 8),  # the plateau may never come
        ({"tokens": 800, "all": [PLATEAU, {"steps": 5}], "any": [{"eval_loss": 1.5}]}, 8),
    ],
)
def test_the_cap_in_whole_steps(written: dict, steps: int) -> None:
    assert cap_steps(until(**written), COSTS, 0, lambda total: None) == steps


@pytest.mark.parametrize(
    ("written", "beside"),
    [
        (PLATEAU, "plateau"),
        ({"eval_loss": 1.5}, "eval_loss"),
        ({"seconds": "2h"}, "seconds"),
        ({"slope": {"tau": -0.05}, "seconds": 90}, "seconds and slope"),
        ({"any": [PLATEAU, {"tokens": 800}]}, "any"),  # it caps the plateau; but a cap stands where one looks for it
        ({"all": [{"tokens": 800}, {"any": [PLATEAU]}]}, "all"),
    ],
)
def test_what_may_never_come_needs_a_cap(written: dict, beside: str) -> None:
    with pytest.raises(InputError) as caught:
        cap_steps(until(**written), COSTS, 0, lambda total: None)
    assert str(caught.value) == f"until: missing a cap; expected tokens, steps or flops beside {beside}"


@pytest.mark.parametrize(
    ("written", "opens", "clocked"),
    [
        ({"tokens": 800, "steps": 5, "flops": 7}, False, False),
        ({"any": [{"all": [{"tokens": 800}]}]}, False, False),
        ({"mixing": {"tokens": "120K", "of": "2M"}}, False, False),
        ({"seconds": 90, "steps": 5}, True, True),
        ({"eval_loss": 1.5, "steps": 5}, True, False),
        ({"plateau": {"min_delta": 0.01, "patience": 3}}, True, False),
        ({"slope": {"tau": -0.05}}, True, False),
        ({"any": [{"steps": 5}, {"all": [{"seconds": 2}]}], "tokens": 800}, True, True),
    ],
)
def test_what_is_known_only_while_training(written: dict, opens: bool, clocked: bool) -> None:
    assert (is_open(until(**written)), reads_clock(until(**written))) == (opens, clocked)


# A wsd rate that decays over the last fifth, or tenth, of a run.
def last_fifth(total: int) -> int:
    return total - total // 5


def last_tenth(total: int) -> int:
    return total - total // 10


def test_a_mixing_time_is_a_place_in_the_run() -> None:
    """2M decay from 1.6M on, 120K before that is 1.48M: 480K from a start at 1M, 4,800 steps."""
    rule = until(mixing={"tokens": "120K", "of": "2M"})
    assert cap_steps(rule, COSTS, 1_000_000, last_fifth) == 4_800
    assert cap_steps(rule, COSTS, 0, last_fifth) == 14_800
    assert placed_mixing(rule, 1_000_000, last_fifth) == until(tokens=480_000)
    # 1.8M - 100K is 1.7M; 0.8 of 2M is 1.6M.
    assert cap_steps(until(mixing={"tokens": "100K", "of": "2M"}), COSTS, 0, last_tenth) == 16_000


def test_a_mixing_time_among_others() -> None:
    mixing = {"mixing": {"tokens": 120, "of": 2000}}  # at 1,480, which is 480 from the start
    rule = until(tokens=900, **PLATEAU, all=[{**mixing, "tokens": 700}, {"eval_loss": 2}])
    placed = until(tokens=900, **PLATEAU, all=[{"tokens": 480}, {"eval_loss": 2}])
    assert placed_mixing(rule, 1000, last_fifth) == placed
    assert placed_mixing(until(**mixing, tokens=300), 1000, last_fifth) == until(tokens=300)
    assert cap_steps(until(**PLATEAU, **mixing), COSTS, 1000, last_fifth) == 5  # a cap, too
    with pytest.raises(ValueError, match="not resolved yet"):
        fired(rule, seen())


@pytest.mark.parametrize(
    ("start", "decay_start", "said"),
    [
        (1480, last_fifth, "found a growth at 1480 tokens of the run, where the stage begins at 1480; expected a later "
         "one: a shorter mixing time, or shorter stages before"),
        (0, lambda total: None, "found with a rate that has no stable phase; "
         "expected lr_schedule.kind: wsd or constant"),
    ],
)  # fmt: skip
def test_a_mixing_time_without_a_place(start: int, decay_start: object, said: str) -> None:
    mixing = {"mixing": {"tokens": 120, "of": 2000}}
    for written, key in ((mixing, "until.mixing"), ({"any": [{"tokens": 5}, mixing]}, "until.any[1].mixing")):
        with pytest.raises(InputError) as caught:
            cap_steps(until(**written), COSTS, start, decay_start)
        assert str(caught.value) == f"{key}: {said}"


@pytest.mark.parametrize(("kind", "steps"), [("wsd", 7), ("constant", 8), ("cosine", None)])
def test_a_plan_places_it_by_the_stage_s_rate(kind: str, steps: int | None, tmp_path: Path) -> None:
    """2,000 tokens that decay over 700 do so from 1,300 on. 200 before are 1,100: 700 after a stage of 400.

    A constant rate never does: 1,800, but no more than 1,600 are left at 0.8 of the run: 1,200 after 400.
    """
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 400}},
        {"name": "same", "model": {"num_layers": 2}, "until": {"mixing": {"tokens": 200, "of": 2000}}},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 900}, "grow": {"operator": "stack"}},
    ]
    training = {"lr_schedule": {"kind": kind, "warmup": 100, "decay": 700}}
    schedule = make_schedule(tmp_path, stages=stages, training=training, baseline={"budgets": [2000]})
    if steps is None:
        with pytest.raises(InputError, match=r"^stages\[1\].until.mixing: found with a rate that has no stable phase"):
            make_plan(schedule)
    else:
        assert make_plan(schedule).staged.stages[1].steps == (12 if kind == "constant" else 7)
