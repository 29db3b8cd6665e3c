"""The tree of a sweep's stages: what trials share, worked out by hand and held to laws."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystage.models.shape import flops_per_token
from raystage.plans.keys import key_at, trunk_key
from raystage.plans.learning_rate import build as curve
from raystage.plans.learning_rate import prefix_signature, signature
from raystage.sweeps.tree import Chain, Node, Tree, build
from raystage.sweeps.trials import SweepPlan, plan_sweep
from sweeps import make_sweep

# In the schedule of these tests the rate is constant after 100 tokens, and a step is 100 tokens.
LENGTHS = "stages[0].until.tokens: {grid: [400, 800]}"
OPERATORS = "stages[2].grow.operator: {choice: [stack, interleave]}"


def planned(folder: Path, space: str, *changes: str, **sections: object) -> SweepPlan:
    return plan_sweep(make_sweep(folder, space, *changes, **sections))


def chains(plan: SweepPlan) -> list[Chain]:
    return [Chain(trial.plan.staged.stages, ((),) * len(trial.plan.staged.stages)) for trial in plan.trials]


def named(tree: Tree, name: str) -> list[Node]:
    return [node for node in tree.nodes.values() if node.stage.name == name]


def token_flops(plan: SweepPlan) -> dict[str, int]:
    return {stage.name: flops_per_token(stage.shape) for stage in plan.trials[0].plan.staged.stages}


# --- by hand ----------------------------------------------------------------------------------


def test_two_lengths_and_two_operators(tmp_path: Path) -> None:
    """400 and 800 tokens of small: the second goes on from the first. Two middles follow, and two fulls each."""
    plan = planned(tmp_path, f"{LENGTHS}\n{OPERATORS}")
    tree, flops = plan.tree, token_flops(plan)
    short, long = named(tree, "small")
    assert (short.label, long.label) == ("until.tokens=400", "until.tokens=800")
    assert (short.trials, long.trials) == ((0, 1), (2, 3))
    assert (short.prefix_key, long.prefix_key) == (None, short.stage.key)
    assert (short.own_flops, long.own_flops) == (400 * flops["small"], 400 * flops["small"])
    assert [node.trials for node in named(tree, "middle")] == [(0, 1), (2, 3)]
    assert [node.label for node in named(tree, "full")] == ["grow.operator=stack", "grow.operator=interleave"] * 2
    after_small = 400 * flops["middle"] + 400 * flops["full"]
    assert tree.flops_apart == 2 * (400 + 800) * flops["small"] + 4 * after_small
    assert tree.flops_shared == 800 * flops["small"] + 2 * 400 * flops["middle"] + 4 * 400 * flops["full"]
    assert tree.sharing_factor == tree.flops_apart / tree.flops_shared
    assert tree.longest_flops == 800 * flops["small"] + after_small
    assert tree.apart == ()


def test_who_starts_first(tmp_path: Path) -> None:
    """Trial 0 has something to do at once, 2 when 0 has trained the small that its own goes on from, 1 when 0 has
    trained the middle that they share, and 3 when 2 has."""
    plan = planned(tmp_path, f"{LENGTHS}\n{OPERATORS}")
    assert plan.tree.order == (0, 2, 1, 3)


def test_under_cosine_nothing_is_shared_and_it_says_why(tmp_path: Path) -> None:
    plan = planned(tmp_path, LENGTHS, "training.lr_schedule.kind=cosine")
    assert plan.tree.sharing_factor == 1
    assert plan.tree.apart == (
        "trials 0 and 1 share no part of stage small: under cosine the rate depends on the run's total tokens",
    )


@pytest.mark.parametrize(
    ("space", "changes", "why"),
    [
        ("training.lr_schedule.kind: {choice: [constant, cosine]}", (), "one's rate is constant, the other's cosine"),
        (LENGTHS, ("training.lr_schedule.warmup=0.1",), "their warm-ups are of different lengths"),
        ("stages[2].until.tokens: {grid: [400, 500]}", ("training.lr_schedule={kind: wsd, decay: 200}",),
         "under wsd the rate decays in it, to an end that depends on the run's total tokens"),
        ("stages[2].until.tokens: {grid: [400, 500]}", ("stages[2].training.lr_schedule={kind: linear}",),
         "under linear the rate depends on the stage's total tokens"),
        ("stages[2].until.tokens: {grid: [400, 500]}",
         ("stages[2].training.lr_schedule={from: current, kind: piecewise, points: [{at: 1, ratio: 0}]}",),
         "their rates go through different points, or through shares of the stage's total tokens"),
        ("stages[2].training.lr_schedule.decay_shape: {choice: [linear, 1-sqrt]}", ("training.lr_schedule.kind=wsd",),
         "one's rate decays in the shape linear, the other's in 1-sqrt"),
    ],
)  # fmt: skip
def test_why_stages_share_nothing(tmp_path: Path, space: str, changes: tuple[str, ...], why: str) -> None:
    tree = planned(tmp_path, space, *changes).tree
    stage = "full" if "stages[2]" in space else "small"
    assert tree.apart == (f"trials 0 and 1 share no part of stage {stage}: {why}",)


def test_under_wsd_stages_before_the_decay_share_all_of_the_shorter_one(tmp_path: Path) -> None:
    """Runs of 1,200 and 1,600 tokens decay from 960 and 1,280 on: after the end of small, at 400 and 800."""
    tree = planned(tmp_path, LENGTHS, "training.lr_schedule={kind: wsd, decay: 0.2, warmup: 100}").tree
    short, long = named(tree, "small")
    assert long.prefix_key == short.stage.key
    assert tree.apart == ()


def test_a_longer_stage_starts_from_the_longest_that_it_can(tmp_path: Path) -> None:
    """900 tokens go on from 500, and these from 300, in whatever order the file has them."""
    space = "stages[0].until.tokens: {grid: [300, 900, 500]}"
    rest = ("stages[1].until.tokens=1000",)
    lengths = [(node.stage.duration, node.own_flops) for node in named(planned(tmp_path, space, *rest).tree, "small")]
    unit = lengths[0][1] // 300
    assert lengths == [(300, 300 * unit), (500, 200 * unit), (900, 400 * unit)]


def test_what_a_growth_fits_is_paid_once_by_the_donor(tmp_path: Path) -> None:
    space = "stages[1].until.tokens: {grid: [400, 600]}"
    plan = planned(tmp_path, space, "stages[1].grow={operator: learned, fit_steps: 10}")
    short, long = named(plan.tree, "middle")
    assert short.own_flops == short.stage.growth_flops + 400 * token_flops(plan)["middle"]
    assert long.own_flops == 200 * token_flops(plan)["middle"]


def test_a_stage_that_is_absent_is_no_part_of_the_path(tmp_path: Path) -> None:
    plan = planned(tmp_path, "stages[1]: {choice: [present, absent]}")
    small = plan.tree.nodes[plan.tree.roots[0]]
    assert small.trials == (0, 1)
    children = [plan.tree.nodes[key] for key in small.children]
    assert sorted((node.stage.name, node.label) for node in children) == [("full", "without middle"), ("middle", "")]


# --- laws -------------------------------------------------------------------------------------

WILD = """
stages[0].until.tokens: {integer: [100, 1500]}
stages[1]: {choice: [present, absent]}
stages[1].until.tokens: {integer: [100, 600]}
training.lr_schedule.kind: {choice: [wsd, constant, cosine, linear]}
training.lr_schedule.warmup: {choice: [0, 150, 0.1]}
training.lr_schedule.decay: {choice: [200, 0.3]}
stages[2].grow.operator: {choice: [stack, interleave]}
"""


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    return planned(tmp_path_factory.mktemp("wild"), WILD, search={"algorithm": "random", "num_trials": 250})


def test_every_stage_counts_once(wild: SweepPlan) -> None:
    tree = wild.tree
    keys = {stage.key for trial in wild.trials for stage in trial.plan.staged.stages}
    assert set(tree.nodes) == keys
    assert tree.flops_shared == sum(node.own_flops for node in tree.nodes.values())
    assert tree.flops_apart == sum(trial.plan.staged.flops for trial in wild.trials)
    assert tree.flops_shared < sum(node.stage.flops for node in tree.nodes.values())
    assert all(node.own_flops > 0 for node in tree.nodes.values())


def test_the_tree_is_that_of_the_keys(wild: SweepPlan) -> None:
    nodes = wild.tree.nodes
    for key, node in nodes.items():
        assert all(nodes[child].stage.parent_key == key for child in node.children)
        assert node.trials == tuple(
            trial.number for trial in wild.trials if key in {stage.key for stage in trial.plan.staged.stages}
        )
    assert sorted([*wild.tree.roots, *(child for node in nodes.values() for child in node.children)]) == sorted(nodes)


def test_donors_are_those_that_comparing_all_pairs_finds(wild: SweepPlan) -> None:
    stages = [node.stage for node in wild.tree.nodes.values()]
    trunks = {stage.key: trunk_key(stage) for stage in stages}
    found = 0
    for stage in stages:
        givers = [
            other for other in stages
            if trunks[other.key] == trunks[stage.key] and other.steps < stage.steps
            and key_at(stage, other.steps) == other.key
        ]  # fmt: skip
        longest = max(givers, key=lambda other: other.steps).key if givers else None
        assert wild.tree.nodes[stage.key].prefix_key == longest
        found += longest is not None
    assert found > 10


def test_whom_a_stage_starts_from_comes_first(wild: SweepPlan) -> None:
    """Of the trials through a prefix one starts before any of those through the stage that starts from it."""
    place = {number: position for position, number in enumerate(wild.tree.order)}
    assert sorted(place) == list(range(250))
    for node in wild.tree.nodes.values():
        if node.prefix_key is not None:
            prefix = wild.tree.nodes[node.prefix_key]
            assert min(place[number] for number in prefix.trials) < min(place[number] for number in node.trials)


def test_equal_trials_share_all(tmp_path: Path) -> None:
    chain = chains(planned(tmp_path, "seed: {grid: [1]}"))[0]
    tree = build([chain, chain, chain])
    assert tree.flops_shared == chain.flops == tree.longest_flops
    assert tree.sharing_factor == 3


def test_trials_without_a_common_stage_share_nothing(tmp_path: Path) -> None:
    tree = planned(tmp_path, "seed: {grid: [1, 2, 3]}").tree
    assert tree.sharing_factor == 1
    assert len(tree.roots) == 3


def test_the_order_of_trials_does_not_matter(wild: SweepPlan) -> None:
    there, back = chains(wild), chains(wild)[::-1]
    first, second = build(there), build(back)
    assert {key: node.own_flops for key, node in first.nodes.items()} == {
        key: node.own_flops for key, node in second.nodes.items()
    }
    assert (first.flops_shared, first.longest_flops) == (second.flops_shared, second.longest_flops)


def test_what_is_in_the_store_is_free(wild: SweepPlan) -> None:
    some = [key for place, key in enumerate(wild.tree.nodes) if place % 3 == 0]
    tree = build(chains(wild), frozenset(some))
    free = sum(wild.tree.nodes[key].own_flops for key in some)
    assert tree.flops_left == wild.tree.flops_left - free
    assert tree.flops_shared == wild.tree.flops_shared == wild.tree.flops_left
    everything = build(chains(wild), frozenset(wild.tree.nodes))
    assert (everything.flops_left, everything.longest_flops) == (0, 0)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "linear", "constant"])
def test_stretches_of_one_stem_agree_as_far_as_both_go(kind: str) -> None:
    rates = [
        curve(kind, lr, start, total, 100, 200, 0.0)
        for lr in (1e-3, 2e-3) for start in (0, 50) for total in (400, 500, 900)
    ]  # fmt: skip
    stretches = [(one, end) for one in rates for end in range(160, 450, 15) if end <= one[-1].end]
    for start in (50, 155):  # in the warm-up, and after it
        for one, first in stretches:
            for other, second in stretches:
                if first <= second and prefix_signature(one, start, first) == prefix_signature(other, start, second):
                    assert signature(one, start, first) == signature(other, start, first)


# --- many -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [2_000, pytest.param(10_000, marks=pytest.mark.drill)])
def test_thousands_of_trials(tmp_path: Path, trials: int) -> None:
    """Of as many as the plan promises to take in seconds, a square would not end within the test's time."""
    space = "stages[0].until.tokens: {integer: [100, 1M]}"
    plan = planned(tmp_path, space, search={"algorithm": "random", "num_trials": trials})
    lengths = {trial.plan.staged.stages[0].steps for trial in plan.trials}
    assert plan.tree.trials == trials
    assert len(named(plan.tree, "small")) == len(lengths)
    small = token_flops(plan)["small"]
    assert sum(node.own_flops for node in named(plan.tree, "small")) == max(lengths) * 100 * small
