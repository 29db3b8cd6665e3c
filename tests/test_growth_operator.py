"""The laws of growth maps, for every operator in the table and the depths and options in the table of cases."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from factories import GROWTHS, GrowthCase, in_blocks, listed
from raystage.growth import depth
from raystage.growth.operator import (
    NO_OPTIONS,
    OPERATORS,
    OPTIMIZER_STATE_POLICIES,
    GrowthOptions,
    Operator,
    complete_options,
    growth_map,
    initial_map,
    refusal,
)
from raystage.schedule import Grow
from raystage.shape import ModelShape, parameters

SHAPE = ModelShape("llama", 1, 8, 4, 2, 6, 20, 257, 16)

every_growth = pytest.mark.parametrize("case", GROWTHS, ids=str)
every_exact_growth = pytest.mark.parametrize("case", [case for case in GROWTHS if case.exact], ids=str)
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else None


def needed(operator: Operator, sources: int, targets: int) -> GrowthOptions:
    """The options without which the operator cannot grow: for `layers` some list."""
    return listed(*depth.stack(sources, targets)) if operator.name == "layers" else NO_OPTIONS


@pytest.mark.parametrize("tied", [False, True])
@every_growth
def test_every_parameter_once_from_one_of_its_own_shape(case: GrowthCase, tied: bool) -> None:
    shape = replace(SHAPE, tied_embeddings=tied)
    small, large = case.shapes(shape)
    sources = {parameter.name: parameter for parameter in parameters(small)}
    targets = parameters(large)
    rules = case.map(shape)
    assert [(rule.target, rule.shape) for rule in rules] == [(target.name, target.shape) for target in targets]
    for rule, target in zip(rules, targets, strict=True):
        if rule.source is not None:
            assert sources[rule.source].shape == rule.shape
            assert sources[rule.source].spec == target.spec
            assert (sources[rule.source].layer is None) == (target.layer is None)
        else:
            assert rule.weights == target.spec.init
            assert rule.moments == "zeros"


@every_growth
def test_rules_are_of_the_known_kinds(case: GrowthCase) -> None:
    for rule in case.map(SHAPE):
        assert rule.weights in {"copy", "zeros", "normal", "ones"}
        assert rule.moments in {"copy", "zeros"}
        assert rule.gradient_factor > 0


@every_growth
def test_the_layers_of_a_block_stay_together(case: GrowthCase) -> None:
    """All of a target's layer comes from one layer of the source, or all of it from none."""
    for layer in range(case.targets):
        of_layer = [rule for rule in case.map(SHAPE) if layer_of(rule.target) == layer]
        assert len({rule.source and layer_of(rule.source) for rule in of_layer}) == 1


@every_growth
def test_every_source_layer_is_used(case: GrowthCase) -> None:
    """But those that a list leaves out."""
    used = range(case.sources) if case.options.layers is None else case.options.layers
    assert {layer_of(rule.source) for rule in case.map(SHAPE) if rule.source} == {None, *used}


@every_growth
def test_what_stands_outside_the_layers_is_copied(case: GrowthCase) -> None:
    for rule in case.map(SHAPE):
        if layer_of(rule.target) is None:
            assert (rule.source, rule.weights, rule.moments) == (rule.target, "copy", "copy")


@pytest.mark.parametrize("layers", [0, 1, 4])
@pytest.mark.parametrize("policy", ["grow", "keep"])
@every_operator
def test_growing_to_the_same_size_is_the_plain_copy(operator: Operator, policy: str, layers: int) -> None:
    for rule in GrowthCase(operator.name, layers, layers, needed(operator, layers, layers)).map(SHAPE, policy):
        assert (rule.source, rule.weights, rule.moments) == (rule.target, "copy", "copy")
        assert rule.gradient_factor == 1.0


@every_growth
def test_reset_changes_the_moments_alone(case: GrowthCase) -> None:
    grown, reset = case.map(SHAPE, "grow"), case.map(SHAPE, "reset")
    assert {rule.moments for rule in reset} == {"zeros"}
    assert [replace(rule, moments="") for rule in reset] == [replace(rule, moments="") for rule in grown]


@every_growth
def test_keep_is_grow_where_no_shape_changes(case: GrowthCase) -> None:
    assert case.map(SHAPE, "keep") == case.map(SHAPE, "grow")


@every_growth
def test_only_what_does_nothing_or_is_fresh_starts_without_moments(case: GrowthCase) -> None:
    """Copies keep their moments; layers that are silenced or fresh have none, in any of their parameters."""
    rules = case.map(SHAPE)
    new = {layer_of(rule.target) for rule in rules if rule.weights == "zeros" or rule.source is None}
    for rule in rules:
        assert rule.moments == ("zeros" if layer_of(rule.target) in new else "copy")


@every_exact_growth
def test_exact_operators_add_layers_that_do_nothing(case: GrowthCase) -> None:
    """The kept layers are the source's, each once and in its order; the others write nothing to the residual."""
    writers = {p.name for p in parameters(SHAPE.with_layers(case.targets)) if p.spec.writes_residual}
    rules = case.map(SHAPE)
    new = {layer_of(rule.target) for rule in rules if rule.weights == "zeros"}
    kept = [rule for rule in rules if layer_of(rule.target) is not None and layer_of(rule.target) not in new]
    assert [layer_of(r.source) for r in kept if r.target.endswith("q_proj.weight")] == list(range(case.sources))
    assert {(rule.weights, rule.moments) for rule in kept} <= {("copy", "copy")}
    for rule in rules:
        if layer_of(rule.target) in new:
            assert rule.weights == ("zeros" if rule.target in writers else "copy")
            assert rule.moments == "zeros"


@pytest.mark.parametrize(
    ("operator", "small", "options", "sources", "new"),
    [
        ("stack", 3, NO_OPTIONS, [0, 1, 2, 0, 1, 2], []),
        ("stack", 2, NO_OPTIONS, [0, 1, 0, 1, 0, 1], []),
        ("interleave", 3, NO_OPTIONS, [0, 0, 1, 1, 2, 2], []),
        ("interleave", 2, NO_OPTIONS, [0, 0, 1], []),
        ("interleave", 3, NO_OPTIONS, [0, 0, 0, 1, 1, 2, 2], []),
        # MIDAS with blocks of 1: of 1, 2, 3, 4 and 5 blocks the 1st, 1st, 2nd, 2nd and 3rd.
        ("middle", 1, in_blocks(1), [0, 0], []),
        ("middle", 2, in_blocks(1), [0, 0, 1], []),
        ("middle", 3, in_blocks(1), [0, 1, 1, 2], []),
        ("middle", 4, in_blocks(1), [0, 1, 1, 2, 3], []),
        ("middle", 5, in_blocks(1), [0, 1, 2, 2, 2, 3, 4], []),
        # MIDAS from one to four blocks of 2: the block follows from the depths.
        ("middle", 2, NO_OPTIONS, [0, 1, 0, 1], []),
        ("middle", 4, NO_OPTIONS, [0, 1, 0, 1, 2, 3], []),
        ("middle", 6, NO_OPTIONS, [0, 1, 2, 3, 2, 3, 4, 5], []),
        ("middle", 6, in_blocks(2), [0, 1, 2, 3, 2, 3, 2, 3, 4, 5], []),
        ("middle", 3, NO_OPTIONS, [0, 1, 2, 0, 1, 2], []),
        # Over a whole number of blocks.
        ("middle", 3, in_blocks(2), [0, 1, 0, 1, 2], []),
        ("middle", 7, in_blocks(2), [0, 1, 2, 3, 2, 3, 4, 5, 6], []),
        ("last", 4, NO_OPTIONS, [0, 1, 2, 3, 2, 3], []),
        ("last", 3, NO_OPTIONS, [0, 1, 2, 2], []),
        ("last", 3, NO_OPTIONS, [0, 1, 2, 0, 1, 2], []),
        ("first", 4, NO_OPTIONS, [0, 1, 0, 1, 2, 3], []),
        ("first", 3, NO_OPTIONS, [0, 0, 1, 2], []),
        ("first", 3, NO_OPTIONS, [0, 1, 2, 0, 1, 2], []),
        ("layers", 3, listed(0, 1, 2, 0, 1, 2), [0, 1, 2, 0, 1, 2], []),
        ("layers", 3, listed(2, 0), [2, 0], []),
        ("layers", 3, listed(1, 1, 1, 1), [1, 1, 1, 1], []),
        ("random", 2, NO_OPTIONS, [0, 1, None, None], [2, 3]),
        ("random", 0, NO_OPTIONS, [None, None], [0, 1]),
        ("identity", 3, NO_OPTIONS, [0, 0, 1, 1, 2, 2], [1, 3, 5]),
        ("identity", 3, NO_OPTIONS, [0, 0, 1, 2], [1]),
        ("identity", 3, listed(0, 1, 2, 0, 1, 2), [0, 1, 2, 0, 1, 2], [3, 4, 5]),
        ("identity", 3, listed(0, 1, 0, 2, 1), [0, 1, 0, 2, 1], [2, 4]),
    ],
)
def test_orders_by_hand(
    operator: str, small: int, options: GrowthOptions, sources: list[int | None], new: list[int]
) -> None:
    rules = GrowthCase(operator, small, len(sources), options).map(SHAPE)
    queries = [rule for rule in rules if rule.target.endswith("q_proj.weight")]
    assert [rule.source and layer_of(rule.source) for rule in queries] == sources
    assert [layer_of(rule.target) for rule in queries if rule.moments == "zeros"] == new


def test_fresh_layers_start_as_the_family_does_with_scaled_residual_projections() -> None:
    rules = {rule.target: rule for rule in GrowthCase("random", 1, 8).map(SHAPE)}
    assert rules["model.layers.1.self_attn.q_proj.weight"].std == 0.02
    for writer in ("self_attn.o_proj", "mlp.down_proj"):
        assert rules[f"model.layers.7.{writer}.weight"].std == pytest.approx(0.02 / math.sqrt(16))
    assert rules["model.layers.1.input_layernorm.weight"].weights == "ones"


@pytest.mark.parametrize(
    ("small", "large", "block"), [(2, 4, 2), (4, 6, 2), (6, 8, 2), (3, 7, 1), (4, 12, 4), (8, 12, 4), (3, 3, 3)]
)
def test_a_block_follows_from_the_depths(small: int, large: int, block: int) -> None:
    source, target = SHAPE.with_layers(small), SHAPE.with_layers(large)
    assert complete_options(source, target, "middle", NO_OPTIONS) == in_blocks(block)
    assert growth_map(source, target, "middle", "grow") == growth_map(
        source, target, "middle", "grow", in_blocks(block)
    )
    assert complete_options(source, target, "middle", in_blocks(1)) == in_blocks(1)


def test_every_operator_has_cases() -> None:
    assert [*dict.fromkeys(case.operator for case in GROWTHS)] == list(OPERATORS)


@every_operator
def test_an_operator_is_what_its_entry_says(operator: Operator) -> None:
    assert OPERATORS[operator.name] is operator
    assert operator.summary
    assert operator.source
    assert set(operator.takes) <= {field.name for field in fields(GrowthOptions)} <= set(Grow.model_fields)
    for case in GROWTHS:
        if case.operator == operator.name:
            options = complete_options(*case.shapes(SHAPE), operator.name, case.options)
            origins = operator.layers(case.sources, case.targets, options)
            assert len(origins) == case.targets
            assert all(origin.new if origin.source is None else origin.source < case.sources for origin in origins)


@every_operator
def test_no_operator_shrinks_or_changes_what_it_does_not_name(operator: Operator) -> None:
    """A list may: it names the layers that stay."""
    fewer, more = SHAPE.with_layers(2), SHAPE.with_layers(4)
    options = needed(operator, 2, 4)
    assert refusal(fewer, more, operator.name, options) is None
    assert refusal(fewer, replace(more, context_length=99), operator.name, options) is None
    back = refusal(more, fewer, operator.name, needed(operator, 4, 2))
    assert (back is None) if operator.name == "layers" else back[0] == "num_layers"
    for field in ("hidden_size", "num_heads", "num_kv_heads", "head_size", "ffn_size", "vocab_size", "tied_embeddings"):
        other = replace(more, **{field: 2 * getattr(more, field) + 1})
        assert refusal(fewer, other, operator.name, options)[0] == field
        with pytest.raises(ValueError, match="grows num_layers only"):
            growth_map(fewer, other, operator.name, "grow", options)


@every_operator
def test_only_fresh_layers_come_from_none(operator: Operator) -> None:
    found = refusal(SHAPE.with_layers(0), SHAPE.with_layers(2), operator.name, needed(operator, 1, 2))
    if operator.name == "random":
        assert found is None
    else:
        said = f"found {operator.name!r} after 0 layers, which leave it nothing to copy; expected random"
        assert found == ("operator", said)


@every_operator
def test_an_option_is_refused_by_operators_that_do_not_take_it(operator: Operator) -> None:
    for option, options in (("layers", listed(0, 1, 0, 1)), ("block", in_blocks(2))):
        found = refusal(SHAPE.with_layers(2), SHAPE.with_layers(4), operator.name, options)
        if option in operator.takes:
            assert found is None
        else:
            assert found[0] == option
            assert f"but {operator.name} takes no {option}; expected operator: " in found[1]


@pytest.mark.parametrize(
    ("operator", "policy", "said"),
    [
        ("stack", "grow", r"^found 7 layers after 3; expected a multiple to stack \(3, 6, 9, 12, \.\.\.\)$"),
        ("last", "grow", r"^found 7 layers after 3; expected 3 to 6$"),
        ("first", "grow", r"^found 7 layers after 3; expected 3 to 6$"),
        ("layers", "grow", r"^missing; expected a list of 7 of the source's layers \(0 to 2\)$"),
        (
            "stak",
            "grow",
            "^found the operator 'stak'; expected one of stack, interleave, middle, last, first, layers, ",
        ),
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
