"""Growing by slices, by the map alone: the laws that every operator in the table must keep."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch

from factories import GROWTHS, GrowthCase, in_blocks, listed
from raystage import model
from raystage.growth.apply import STATES, Read, grown_slice, grown_steps
from raystage.growth.operator import NO_OPTIONS, GrowthMap, initial_map
from raystage.objective import logits_of
from raystage.shape import ModelShape, parameters

SHAPE = ModelShape("llama", 2, 16, 4, 2, 4, 24, 31, 12)
SIZES = {parameter.name: parameter.numel for parameter in parameters(SHAPE.with_layers(12))}
SEED = 7

every_growth = pytest.mark.parametrize("case", GROWTHS, ids=str)
every_exact_growth = pytest.mark.parametrize("case", [case for case in GROWTHS if case.exact], ids=str)


def made_up(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
    """Some fixed numbers for every state of every parameter of a source; second moments are not negative."""
    seed = int.from_bytes(hashlib.sha256(f"{parameter}/{state}".encode()).digest()[:4], "little")
    values = np.random.default_rng(seed).normal(scale=0.3, size=SIZES[parameter]).astype(np.float32)
    return (np.abs(values) if state == "exp_avg_sq" else values)[start:stop]


def reader(rules: GrowthMap, read: Read) -> Read:
    """What is read from a model that was grown by `rules` from one that `read` reads."""
    by_name = {rule.target: rule for rule in rules}
    return lambda name, state, start, stop: grown_slice(by_name[name], state, start, stop, read, SEED)


def whole(rules: GrowthMap, state: str, read: Read = made_up) -> dict[str, np.ndarray]:
    return {rule.target: grown_slice(rule, state, 0, SIZES[rule.target], read, SEED) for rule in rules}


@pytest.mark.parametrize("state", STATES)
@every_growth
def test_growing_by_slices_is_growing_whole(case: GrowthCase, state: str) -> None:
    for rule in case.map(SHAPE):
        numel = int(np.prod(rule.shape))
        complete = grown_slice(rule, state, 0, numel, made_up, SEED)
        for cuts in ((0, numel), (0, 1, numel), (0, numel // 3, numel // 2, numel)):
            parts = [grown_slice(rule, state, a, b, made_up, SEED) for a, b in itertools.pairwise(cuts)]
            np.testing.assert_array_equal(np.concatenate(parts), complete)
        assert complete.dtype == np.float32


@every_growth
def test_second_moments_are_never_negative(case: GrowthCase) -> None:
    grown = whole(case.map(SHAPE), "exp_avg_sq")
    assert all((values >= 0).all() for values in grown.values())


@pytest.mark.parametrize("policy", ["grow", "reset", "keep"])
@every_growth
def test_moments_and_steps_go_together(case: GrowthCase, policy: str) -> None:
    """A parameter without a past has neither moments nor steps; one with a past has both."""
    rules = case.map(SHAPE, policy)
    steps = grown_steps(rules, dict.fromkeys(SIZES, 5))
    for name, moments in whole(rules, "exp_avg").items():
        assert bool(moments.any()) == (steps[name] == 5)
    if policy == "reset":
        assert set(steps.values()) == {0}


@every_exact_growth
def test_an_exact_operator_keeps_the_function(case: GrowthCase) -> None:
    source, target = case.shapes(SHAPE)
    same = GrowthCase("identity", case.sources, case.sources).map(SHAPE)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        inputs = torch.randint(0, 31, (3, 12), generator=torch.Generator().manual_seed(0))
        before = logits_of(build(source, same).to(dtype), inputs)
        after = logits_of(build(target, case.map(SHAPE)).to(dtype), inputs)
        assert (before - after).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (
            GrowthCase(operator, small, between, first),
            GrowthCase(operator, between, large, second),
            GrowthCase(operator, small, large, both),
        )
        for operator, small, between, large, first, second, both in [
            ("stack", 2, 4, 12, NO_OPTIONS, NO_OPTIONS, NO_OPTIONS),
            ("stack", 1, 3, 9, NO_OPTIONS, NO_OPTIONS, NO_OPTIONS),
            ("interleave", 2, 4, 12, NO_OPTIONS, NO_OPTIONS, NO_OPTIONS),
            ("middle", 4, 6, 10, in_blocks(2), in_blocks(2), in_blocks(2)),
            ("middle", 3, 4, 6, in_blocks(1), in_blocks(1), in_blocks(1)),
            ("layers", 3, 4, 5, listed(2, 0, 0, 1), listed(3, 3, 0, 1, 2), listed(1, 1, 2, 0, 0)),
            ("layers", 3, 2, 3, listed(2, 0), listed(0, 1, 0), listed(2, 0, 2)),
            ("identity", 2, 4, 12, NO_OPTIONS, NO_OPTIONS, NO_OPTIONS),
            ("identity", 1, 3, 9, NO_OPTIONS, NO_OPTIONS, NO_OPTIONS),
            ("identity", 2, 3, 6, listed(0, 1, 0), listed(0, 1, 1, 2, 0, 2), listed(0, 1, 1, 0, 0, 0)),
        ]
    ],
    ids=str,
)
def test_growing_twice_is_growing_once(first: GrowthCase, second: GrowthCase, both: GrowthCase) -> None:
    """Weights, moments and step counts: A -> B -> C is A -> C, where nothing is trained between."""
    one, two, direct = (case.map(SHAPE) for case in (first, second, both))
    for state in STATES:
        by_way, straight = whole(two, state, reader(one, made_up)), whole(direct, state)
        assert by_way.keys() == straight.keys()
        for name, values in straight.items():
            np.testing.assert_array_equal(by_way[name], values)
    seen = {name: 3 + number for number, name in enumerate(SIZES)}
    assert grown_steps(two, grown_steps(one, seen)) == grown_steps(direct, seen)


def test_initialisation_does_not_depend_on_depth_or_slice() -> None:
    """A parameter is drawn from (seed, its name): layer 0 starts alike whatever comes above it."""
    shallow, deep = (whole(initial_map(SHAPE.with_layers(n), 0.02), "fp32") for n in (2, 4))
    for name, values in shallow.items():
        np.testing.assert_array_equal(values, deep[name])
    weights = shallow["model.layers.0.mlp.up_proj.weight"]
    assert weights.std() == pytest.approx(0.02, rel=0.15)
    assert (shallow["model.norm.weight"] == 1).all()


def test_fresh_layers_are_drawn_like_those_of_a_model_from_nothing() -> None:
    """But for the projections onto the residual stream, which start smaller by sqrt(2 L)."""
    grown = whole(GrowthCase("random", 1, 8).map(SHAPE), "fp32")
    nothing = whole(initial_map(SHAPE.with_layers(8), 0.02), "fp32")
    for name in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm"):
        np.testing.assert_array_equal(grown[f"model.layers.3.{name}.weight"], nothing[f"model.layers.3.{name}.weight"])
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        scaled = nothing[f"model.layers.3.{name}.weight"] / 4
        np.testing.assert_allclose(grown[f"model.layers.3.{name}.weight"], scaled, rtol=1e-6)


def build(shape: ModelShape, rules: GrowthMap) -> torch.nn.Module:
    built, values = model.build(shape), whole(rules, "fp32")
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(torch.tensor(values[name]).view(parameter.shape))
    return built
