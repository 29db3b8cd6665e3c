"""The laws of growth maps, for every operator in the table and every pair of depths it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raystage.growth import depth
from raystage.growth.operator import (
    OPERATORS,
    OPTIMIZER_STATE_POLICIES,
    GrowthMap,
    Operator,
    growth_map,
    initial_map,
    refusal,
)
from raystage.shape import ModelShape, parameters

SHAPE = ModelShape("llama", 1, 8, 4, 2, 6, 20, 257, 16)
DEPTHS = [
    (1, 1),
    (1, 2),
    (1, 5),
    (2, 3),
    (2, 4),
    (3, 3),
    (3, 4),
    (3, 6),
    (3, 7),
    (3, 12),
    (4, 6),
    (5, 7),
    (6, 9),
    (7, 8),
]
ALL = [
    (operator, small, large)
    for operator in OPERATORS.values()
    for small, large in DEPTHS
    if operator.refuse(small, large) is None
]
EXACT = [(operator, small, large) for operator, small, large in ALL if operator.exact]

every_growth = pytest.mark.parametrize(
    ("operator", "small", "large"), ALL, ids=[f"{o.name}-{small}-{large}" for o, small, large in ALL]
)
every_exact_growth = pytest.mark.parametrize(
    ("operator", "small", "large"), EXACT, ids=[f"{o.name}-{small}-{large}" for o, small, large in EXACT]
)


def grow(operator: Operator, small: int, large: int, policy: str = "grow", shape: ModelShape = SHAPE) -> GrowthMap:
    return growth_map(shape.with_layers(small), shape.with_layers(large), operator.name, policy)


def layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else None


@pytest.mark.parametrize("tied", [False, True])
@every_growth
def test_every_parameter_once_from_one_of_its_own_shape(operator: Operator, small: int, large: int, tied: bool) -> None:
    shape = replace(SHAPE, tied_embeddings=tied)
    sources = {parameter.name: parameter for parameter in parameters(shape.with_layers(small))}
    targets = parameters(shape.with_layers(large))
    rules = grow(operator, small, large, shape=shape)
    assert [(rule.target, rule.shape) for rule in rules] == [(target.name, target.shape) for target in targets]
    for rule, target in zip(rules, targets, strict=True):
        if rule.source is not None:
            assert sources[rule.source].shape == rule.shape
            assert sources[rule.source].spec == target.spec
            assert (sources[rule.source].layer is None) == (target.layer is None)
        else:
            assert rule.weights != "copy"
            assert rule.moments != "copy"


@every_growth
def test_rules_are_of_the_known_kinds(operator: Operator, small: int, large: int) -> None:
    for rule in grow(operator, small, large):
        assert rule.weights in {"copy", "zeros", "normal", "ones"}
        assert rule.moments in {"copy", "zeros"}
        assert rule.gradient_factor > 0


@every_growth
def test_the_layers_of_a_block_stay_together(operator: Operator, small: int, large: int) -> None:
    """All of a target's layer comes from one layer of the source."""
    for layer in range(large):
        of_layer = [rule for rule in grow(operator, small, large) if layer_of(rule.target) == layer and rule.source]
        assert len({layer_of(rule.source) for rule in of_layer}) == 1


@every_growth
def test_every_source_layer_is_used(operator: Operator, small: int, large: int) -> None:
    assert {layer_of(rule.source) for rule in grow(operator, small, large) if rule.source} == {None, *range(small)}


@every_growth
def test_what_stands_outside_the_layers_is_copied(operator: Operator, small: int, large: int) -> None:
    for rule in grow(operator, small, large):
        if layer_of(rule.target) is None:
            assert (rule.source, rule.weights, rule.moments) == (rule.target, "copy", "copy")


@pytest.mark.parametrize("policy", ["grow", "keep"])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_growing_to_the_same_size_is_the_plain_copy(operator: Operator, policy: str) -> None:
    for rule in grow(operator, 4, 4, policy):
        assert (rule.source, rule.weights, rule.moments) == (rule.target, "copy", "copy")
        assert rule.gradient_factor == 1.0


@every_growth
def test_reset_changes_the_moments_alone(operator: Operator, small: int, large: int) -> None:
    grown, reset = grow(operator, small, large, "grow"), grow(operator, small, large, "reset")
    assert {rule.moments for rule in reset} == {"zeros"}
    assert [replace(rule, moments="") for rule in reset] == [replace(rule, moments="") for rule in grown]


@every_growth
def test_keep_is_grow_where_no_shape_changes(operator: Operator, small: int, large: int) -> None:
    assert grow(operator, small, large, "keep") == grow(operator, small, large, "grow")


@every_exact_growth
def test_exact_operators_add_layers_that_do_nothing(operator: Operator, small: int, large: int) -> None:
    """The kept layers are the source's, each once and in its order; the others write nothing to the residual."""
    writers = {p.name for p in parameters(SHAPE.with_layers(large)) if p.spec.writes_residual}
    rules = grow(operator, small, large)
    new = {layer_of(rule.target) for rule in rules if rule.weights == "zeros"}
    kept = [rule for rule in rules if layer_of(rule.target) is not None and layer_of(rule.target) not in new]
    assert [layer_of(r.source) for r in kept if r.target.endswith("q_proj.weight")] == list(range(small))
    assert {(rule.weights, rule.moments) for rule in kept} == {("copy", "copy")}
    for rule in rules:
        if layer_of(rule.target) in new:
            assert rule.weights == ("zeros" if rule.target in writers else "copy")
            assert rule.moments == "zeros"


@pytest.mark.parametrize(
    ("operator", "small", "large", "sources", "new"),
    [
        ("stack", 3, 6, [0, 1, 2, 0, 1, 2], []),
        ("stack", 2, 6, [0, 1, 0, 1, 0, 1], []),
        ("interleave", 3, 6, [0, 0, 1, 1, 2, 2], []),
        ("interleave", 2, 3, [0, 0, 1], []),
        ("interleave", 3, 7, [0, 0, 0, 1, 1, 2, 2], []),
        ("identity", 3, 6, [0, 0, 1, 1, 2, 2], [1, 3, 5]),
        ("identity", 3, 4, [0, 0, 1, 2], [1]),
    ],
)
def test_orders_by_hand(operator: str, small: int, large: int, sources: list[int], new: list[int]) -> None:
    queries = [rule for rule in grow(OPERATORS[operator], small, large) if rule.target.endswith("q_proj.weight")]
    assert [layer_of(rule.source) for rule in queries] == sources
    assert [layer_of(rule.target) for rule in queries if rule.moments == "zeros"] == new


@pytest.mark.parametrize(("small", "large"), DEPTHS)
def test_depth_by_its_formulas(small: int, large: int) -> None:
    assert depth.stack(small, large) == tuple(i % small for i in range(large))
    assert depth.interleave(small, large) == tuple(i * small // large for i in range(large))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_an_operator_is_what_its_entry_says(operator: Operator) -> None:
    assert OPERATORS[operator.name] is operator
    assert operator.summary
    assert operator.source
    for small, large in DEPTHS:
        if operator.refuse(small, large) is None:
            origins = operator.layers(small, large)
            assert len(origins) == large
            assert all(0 <= origin.source < small for origin in origins)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_no_operator_shrinks_or_changes_what_it_does_not_name(operator: Operator) -> None:
    fewer, more = SHAPE.with_layers(2), SHAPE.with_layers(4)
    assert refusal(fewer, more, operator.name) is None
    assert refusal(fewer, replace(more, context_length=99), operator.name) is None
    assert refusal(more, fewer, operator.name)[0] == "num_layers"
    for field in ("hidden_size", "num_heads", "num_kv_heads", "head_size", "ffn_size", "vocab_size", "tied_embeddings"):
        other = replace(more, **{field: 2 * getattr(more, field) + 1})
        assert refusal(fewer, other, operator.name)[0] == field
        with pytest.raises(ValueError, match="grows num_layers only"):
            growth_map(fewer, other, operator.name, "grow")


@pytest.mark.parametrize(
    ("operator", "policy", "said"),
    [
        ("stack", "grow", r"^found 7 layers after 3; expected a multiple to stack \(3, 6, 9, 12, \.\.\.\)$"),
        ("stak", "grow", "^found the operator 'stak'; expected one of stack, interleave, identity"),
        ("interleave", "forget", "^found the optimizer_state 'forget'; expected one of grow, reset, keep$"),
    ],
)
def test_what_cannot_be_grown(operator: str, policy: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        growth_map(SHAPE.with_layers(3), SHAPE.with_layers(7), operator, policy)


def test_a_model_from_nothing() -> None:
    rules = initial_map(SHAPE.with_layers(2), std=0.02)
    assert [(r.target, r.shape, r.weights) for r in rules] == [
        (p.name, p.shape, p.spec.init) for p in parameters(SHAPE.with_layers(2))
    ]
    assert {(rule.source, rule.moments, rule.std) for rule in rules} == {(None, "zeros", 0.02)}


def test_policies() -> None:
    assert OPTIMIZER_STATE_POLICIES == ("grow", "reset", "keep")
