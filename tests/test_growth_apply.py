"""Growing by slices, by the map alone: the laws that every operator in the table must keep."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch

from raystage import model
from raystage.growth.apply import STATES, grown_slice, grown_steps
from raystage.growth.operator import OPERATORS, GrowthMap, growth_map, initial_map
from raystage.objective import logits_of
from raystage.shape import ModelShape, parameters

SOURCE = ModelShape("llama", 2, 16, 4, 2, 4, 24, 31, 12)
TARGETS = {"twofold": 4, "threefold": 6, "the same": 2}
SEED = 7


def made_up(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
    """Some fixed numbers for every state of every parameter of the source; second moments are not negative."""
    spec = next(one for one in parameters(SOURCE) if one.name == parameter)
    seed = int.from_bytes(hashlib.sha256(f"{parameter}/{state}".encode()).digest()[:4], "little")
    values = np.random.default_rng(seed).normal(scale=0.3, size=spec.numel).astype(np.float32)
    return (np.abs(values) if state == "exp_avg_sq" else values)[start:stop]


def whole(rules: GrowthMap, state: str) -> dict[str, np.ndarray]:
    sizes = {rule.target: int(np.prod(rule.shape)) for rule in rules}
    return {rule.target: grown_slice(rule, state, 0, sizes[rule.target], made_up, SEED) for rule in rules}


@pytest.fixture(params=TARGETS.values(), ids=TARGETS.keys())
def target(request: pytest.FixtureRequest) -> ModelShape:
    return SOURCE.with_layers(request.param)


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("state", STATES)
def test_growing_by_slices_is_growing_whole(operator: str, target: ModelShape, state: str) -> None:
    for rule in growth_map(SOURCE, target, operator, "grow"):
        numel = int(np.prod(rule.shape))
        complete = grown_slice(rule, state, 0, numel, made_up, SEED)
        for cuts in ((0, numel), (0, 1, numel), (0, numel // 3, numel // 2, numel)):
            parts = [grown_slice(rule, state, a, b, made_up, SEED) for a, b in itertools.pairwise(cuts)]
            np.testing.assert_array_equal(np.concatenate(parts), complete)
        assert complete.dtype == np.float32


def test_second_moments_are_never_negative(operator: str, target: ModelShape) -> None:
    grown = whole(growth_map(SOURCE, target, operator, "grow"), "exp_avg_sq")
    assert all((values >= 0).all() for values in grown.values())


@pytest.mark.parametrize("policy", ["grow", "reset", "keep"])
def test_moments_and_steps_go_together(operator: str, target: ModelShape, policy: str) -> None:
    """A parameter without a past has neither moments nor steps; one with a past has both."""
    rules = growth_map(SOURCE, target, operator, policy)
    steps = grown_steps(rules, {parameter.name: 5 for parameter in parameters(SOURCE)})
    for name, moments in whole(rules, "exp_avg").items():
        assert bool(moments.any()) == (steps[name] == 5)
    if policy == "reset":
        assert set(steps.values()) == {0}


def test_an_exact_operator_keeps_the_function(operator: str, target: ModelShape) -> None:
    if not OPERATORS[operator].exact and target != SOURCE:
        pytest.skip("claims nothing")
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        inputs = torch.randint(0, 31, (3, 12), generator=torch.Generator().manual_seed(0))
        before = logits_of(build_source().to(dtype), inputs)
        after = logits_of(build(target, growth_map(SOURCE, target, operator, "grow")).to(dtype), inputs)
        assert (before - after).abs().max() <= tolerance


def test_initialisation_does_not_depend_on_depth_or_slice() -> None:
    """A parameter is drawn from (seed, its name): layer 0 starts alike whatever comes above it."""
    shallow, deep = (whole(initial_map(SOURCE.with_layers(n), 0.02), "fp32") for n in (2, 4))
    for name, values in shallow.items():
        np.testing.assert_array_equal(values, deep[name])
    weights = shallow["model.layers.0.mlp.up_proj.weight"]
    assert weights.std() == pytest.approx(0.02, rel=0.15)
    assert (shallow["model.norm.weight"] == 1).all()


def build(shape: ModelShape, rules: GrowthMap) -> torch.nn.Module:
    built, values = model.build(shape), whole(rules, "fp32")
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(torch.tensor(values[name]).view(parameter.shape))
    return built


def build_source() -> torch.nn.Module:
    return build(SOURCE, growth_map(SOURCE, SOURCE, "identity", "grow"))
