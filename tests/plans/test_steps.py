"""Ramps of batch and context, by hand: which steps they are made of, and all that follows from these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_schedule
from raystage.errors import InputError
from raystage.models.shape import flops_per_token
from raystage.planning.build import make_plan
from raystage.plans.keys import key_at
from raystage.plans.rates import rates_of
from raystage.plans.stage import StagePlan
from raystage.plans.steps import Doubling, StepSchedule, StepSegment, doubling_steps, rate_factor
from raystage.runs.progress import describe_stage
from raystage.storage.jobs import continues

# From 100 to 400 tokens a step over 1,000: 5 steps of 100, then 3 of 200 (the third begins at 900), then 400.
BATCHES = doubling_steps(Doubling(100, 2, 1000), Doubling(10))
# The context from 5 to 10 over 700: the last step in the shorter one begins at 500 and has 200 tokens.
BOTH = doubling_steps(Doubling(100, 2, 1000), Doubling(5, 1, 700))


def test_a_value_doubles_in_equal_shares() -> None:
    batch = Doubling(100, 2, 1000)
    assert [batch.at(tokens) for tokens in (0, 499, 500, 999, 1000, 9999)] == [100, 100, 200, 200, 400, 400]
    assert Doubling(7).at(0) == Doubling(7).at(10**9) == 7


@pytest.mark.parametrize(
    ("made", "pieces"),
    [
        (doubling_steps(Doubling(100), Doubling(10)), [(0, 0, 100, 10)]),
        (BATCHES, [(0, 0, 100, 10), (5, 500, 200, 10), (8, 1100, 400, 10)]),
        (BOTH, [(0, 0, 100, 5), (5, 500, 200, 5), (6, 700, 200, 10), (8, 1100, 400, 10)]),
        # Thirds of 100 end within steps of 40: these are taken whole.
        (doubling_steps(Doubling(40, 3, 100), Doubling(10)), [(0, 0, 40, 10), (1, 40, 80, 10), (2, 120, 320, 10)]),
        # A step is taken with the values of the place where it begins.
        (doubling_steps(Doubling(100, 1, 150), Doubling(10, 1, 250)),
         [(0, 0, 100, 10), (2, 200, 200, 10), (3, 400, 200, 20)]),
    ],
)  # fmt: skip
def test_the_pieces_by_hand(made: StepSchedule, pieces: list[tuple]) -> None:
    assert made.segments == tuple(StepSegment(*piece) for piece in pieces)


def test_tokens_by_hand() -> None:
    assert [BATCHES.duration(steps) for steps in range(11)] == [0, 100, 200, 300, 400, 500, 700, 900, 1100, 1500, 1900]
    assert [BATCHES.duration(steps + 0.5) for steps in (0, 4, 5, 8)] == [50, 450, 600, 1300]


def test_the_fewest_steps_with_so_many_tokens() -> None:
    found = [BATCHES.steps_for(tokens) for tokens in (1, 100, 101, 500, 501, 700, 701, 1100, 1101, 1500, 1501)]
    assert found == [1, 1, 2, 5, 6, 6, 7, 8, 9, 9, 10]
    assert all(BATCHES.steps_for(BATCHES.duration(steps)) == steps for steps in range(1, 30))


def test_flops_are_those_of_the_context_of_the_moment() -> None:
    def cost(context: int) -> int:
        return 7 * context

    by_hand = [0, 3500, 7000, 10500, 14000, 17500, 24500, 38500, 52500, 80500]
    assert [BOTH.flops(steps, cost) for steps in range(10)] == by_hand
    assert [BOTH.steps_for_flops(flops, cost) for flops in by_hand[1:]] == list(range(1, 10))
    assert [BOTH.steps_for_flops(flops + 1, cost) for flops in by_hand] == list(range(1, 11))


# --- in a plan ----------------------------------------------------------------------------------

BATCH = {"from": 50, "over": {"tokens": 400}}
CONTEXT = {"from": 5, "over": {"tokens": 400}}


def plan_of(folder: Path, ramp: dict | None, until: dict | None = None, **training: object) -> tuple[StagePlan, ...]:
    """One stage in steps of 100 tokens, in a context of 10, and what `ramp` says; then another without it."""
    stages = [
        {"name": "one", "model": {"num_layers": 2}, "until": until or {"tokens": 800},
         "training": {"ramp": ramp, **training}},
        {"name": "two", "model": {"num_layers": 2}, "until": {"tokens": 800}},
    ]  # fmt: skip
    return make_plan(make_schedule(folder, stages=stages, baseline=None)).staged.stages


def test_steps_tokens_and_flops_of_a_stage(tmp_path: Path) -> None:
    """8 steps of 50 in a context of 5, then 4 of 100 in one of 10."""
    one, two = plan_of(tmp_path, {"global_batch_tokens": BATCH, "context_length": CONTEXT})
    assert (one.steps, one.duration, two.start, two.start_steps) == (12, 800, 800, 12)
    assert one.flops == 400 * one.unit_flops(5) + 400 * one.unit_flops(10)
    assert one.unit_flops(10) == flops_per_token(one.shape) > one.unit_flops(5)
    assert two.start_flops == one.flops
    assert one.window == one.shape.context_length == 10


@pytest.mark.parametrize(
    ("until", "steps", "tokens"),
    [
        ({"tokens": 401}, 9, 500),
        ({"steps": 9}, 9, 500),
        ({"any": [{"tokens": 900}, {"steps": 10}]}, 10, 600),
        ({"all": [{"tokens": 401}, {"steps": 11}]}, 11, 700),
        ({"tokens": 800, "eval_loss": 1.0}, 12, 800),
    ],
)
def test_caps_count_the_steps_as_they_are(until: dict, steps: int, tokens: int, tmp_path: Path) -> None:
    stage = plan_of(tmp_path, {"global_batch_tokens": BATCH}, until, lr_schedule={"kind": "constant"})[0]
    assert (stage.steps, stage.duration) == (steps, tokens)


def test_a_cap_in_flops(tmp_path: Path) -> None:
    """One more than 400 tokens in the shorter context take."""
    whole = plan_of(tmp_path, {"context_length": CONTEXT})[0]
    flops = 400 * whole.unit_flops(5) + 1
    stage = plan_of(tmp_path, {"context_length": CONTEXT}, {"flops": flops})[0]
    assert (stage.steps, stage.duration) == (5, 500)


def test_a_shorter_version_of_a_stage_has_the_key_of_its_beginning(tmp_path: Path) -> None:
    ramp, rate = {"global_batch_tokens": BATCH}, {"kind": "constant"}
    short = plan_of(tmp_path, ramp, {"tokens": 600}, lr_schedule=rate)[0]
    long = plan_of(tmp_path, ramp, {"tokens": 800}, lr_schedule=rate)[0]
    assert key_at(long, short.steps) == short.key != long.key


def test_keys_know_ramps_and_nothing_of_what_is_none(tmp_path: Path) -> None:
    ramps = [{"global_batch_tokens": BATCH}, {"context_length": CONTEXT},
             {"global_batch_tokens": {"from": 50, "over": {"tokens": 300}}}]  # fmt: skip
    keys = [plan_of(tmp_path, ramp)[0].key for ramp in (None, *ramps)]
    assert len(set(keys)) == 4
    plain = [{"name": "one", "model": {"num_layers": 2}, "until": {"tokens": 800}, "training": {"zero_stage": 1}},
             {"name": "two", "model": {"num_layers": 2}, "until": {"tokens": 800}}]  # fmt: skip
    assert make_plan(make_schedule(tmp_path, stages=plain, baseline=None)).staged.stages[0].key == keys[0]


@pytest.mark.parametrize(
    ("how", "factors"), [("none", [1, 1, 1]), ("linear", [0.25, 0.5, 1]), ("sqrt", [0.5, 0.5**0.5, 1])]
)
def test_the_rate_follows_the_batch(how: str, factors: list[float], tmp_path: Path) -> None:
    """And its highest value is that of the stage's own batch."""
    ramp = {"global_batch_tokens": {"from": 50, "over": {"tokens": 400}}, "scale_lr": how}
    training = {"global_batch_tokens": 200, "lr_schedule": {"kind": "constant", "warmup": 0}}
    stage = plan_of(tmp_path, ramp, {"tokens": 1600}, **training)[0]
    segments = stage.step_schedule.segments
    assert [rate_factor(stage.training, one.batch) for one in segments] == pytest.approx(factors)
    highest = stage.training.optimizer.lr
    assert rates_of(stage) == pytest.approx((factors[0] * highest, highest, highest))


def test_the_key_knows_how_the_rate_follows_the_batch(tmp_path: Path) -> None:
    ramp = {"global_batch_tokens": {"from": 50, "over": {"tokens": 400}}}
    keys = [
        plan_of(tmp_path, {**ramp, **how}, {"tokens": 1600})[0].key
        for how in ({}, {"scale_lr": "none"}, {"scale_lr": "linear"}, {"scale_lr": "sqrt"})
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_baselines_and_workers_that_go_on_have_none(tmp_path: Path) -> None:
    """It is a part of the staging, whose saving is measured against the stage's own batch and context."""
    stages = [{"name": "one", "model": {"num_layers": 2}, "until": {"tokens": 800}}]
    ramped = {"training": {"ramp": {"context_length": CONTEXT}}}
    plain, ramp = (
        make_plan(make_schedule(tmp_path, stages=[{**stages[0], **more}]))
        for more in ({}, ramped)
    )  # fmt: skip
    assert [[stage.key for stage in run.stages] for run in ramp.baselines] == [
        [stage.key for stage in run.stages] for run in plain.baselines
    ]
    for plan, goes_on in ((plain, True), (ramp, False)):
        first = plan.staged.stages[0]
        assert continues(first, replace(first, key="next", parent_key=first.key)) is goes_on


def test_how_it_is_told(tmp_path: Path) -> None:
    one, two = plan_of(tmp_path, {"global_batch_tokens": BATCH})
    assert ", 12 steps of 50 to 100 tokens, " in describe_stage(one)
    assert ", 8 steps of 100 tokens, " in describe_stage(two)


OVER = {"over": {"tokens": 400}}
REFUSED = [
    ({}, {}, "stages[0].training.ramp: found nothing; expected global_batch_tokens, context_length or both"),
    ({"batch": 5}, {}, "stages[0].training.ramp.batch: unknown key; known here: context_length, "
     "global_batch_samples, global_batch_tokens, scale_lr"),
    ({"scale_lr": "sqrt"}, {},
     "stages[0].training.ramp: found nothing; expected global_batch_tokens, context_length or both"),
    ({"scale_lr": "sqrt", "context_length": {"from": 5, **OVER}}, {}, "stages[0].training.ramp.scale_lr: found sqrt "
     "without a ramp of the batch, which the rate would follow; expected global_batch_tokens beside it"),
    ({"global_batch_tokens": {"from": 50}}, {},
     "stages[0].training.ramp.global_batch_tokens.over: missing; expected for example over: {tokens: 200K}"),
    ({"global_batch_tokens": OVER}, {},
     "stages[0].training.ramp.global_batch_tokens.from: missing; expected for example from: 1024"),
    ({"global_batch_tokens": {"from": 30, **OVER}}, {},
     "stages[0].training.ramp.global_batch_tokens.from: found 30; expected the stage's 100 halved once or several "
     "times, such as 50 or 25"),
    ({"global_batch_tokens": {"from": 100, **OVER}}, {},
     "stages[0].training.ramp.global_batch_tokens.from: found 100; expected the stage's 100 halved once or several "
     "times, such as 50 or 25"),
    ({"context_length": {"from": 20, **OVER}}, {},
     "stages[0].training.ramp.context_length.from: found 20; expected the stage's 10 halved once or several times, "
     "such as 5"),
    ({"global_batch_tokens": {"from": 25, **OVER}}, {},
     "stages[0].training.ramp: found steps of 25 tokens in a context of 10 on the way; expected whole sequences, as "
     "with a larger batch or a ramp of context_length"),
    ({"global_batch_tokens": BATCH}, {"workers": 6},
     "stages[0].training.ramp: found steps of 50 tokens in a context of 10 on the way, 5 sequences; expected one for "
     "each of 6 workers"),
    ({"global_batch_tokens": {"from": 50, "over": {"tokens": 801}}}, {},
     "stages[0].training.ramp.global_batch_tokens.over.tokens: found 801 in a stage of 800 tokens; expected at most as "
     "many"),
]  # fmt: skip


@pytest.mark.parametrize(("ramp", "training", "said"), REFUSED)
def test_what_does_not_fit_is_refused(ramp: dict, training: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        plan_of(tmp_path, ramp, **training)
    assert str(refused.value) == said
