"""The laws of growth maps as data: for every operator in the table and every growth in the table of cases."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest

from growths import (
    DEEPER,
    EXACT,
    GROWTHS,
    LLAMA,
    NEED_TRAINING,
    SOURCES,
    GrowthCase,
    deeper,
    for_each,
    growth,
    in_blocks,
    listed,
    mixture,
)
from raystage.growth.axis_maps import FRESH, MEAN, ZERO, AxisMap
from raystage.growth.checks import changed_fields
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.operators import OPERATORS, PARTS, complete_options, layer_origins, operators_of
from raystage.growth.rules import Rule, growth_map, initial_map, unit_maps
from raystage.models.build import build
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, stored
from raystage.train.state.buffers import persistent_buffers

every_growth = for_each(GROWTHS)
every_deeper_growth = for_each(DEEPER)


@cache
def real_stored(shape: ModelShape) -> list[tuple[str, tuple[int, ...]]]:
    network = build(shape)
    return [(name, tuple(one.shape)) for name, one in (*network.named_parameters(), *persistent_buffers(network))]


@cache
def source_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    return {parameter.name: parameter.shape for parameter in stored(shape)}


def layers_of(shape: ModelShape) -> dict[str, int | None]:
    return {parameter.name: parameter.layer for parameter in stored(shape)}


def moments(rule: Rule, of_parameter: str) -> str:
    """What a rule's moments are to be, given what a parameter's would be: a buffer has none."""
    return "none" if rule.target.endswith(("running_mean", "running_var")) else of_parameter


# --- every operator has cases -------------------------------------------------------------------


def grown_parts(case: GrowthCase) -> set[str]:
    """The parts that grow in a case, by the field that says how large they are."""
    return {field for field in changed_fields(case.source, case.target) if field in PARTS}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_cases_for_every_part_that_it_grows(name: str) -> None:
    of_it = [case for case in GROWTHS if case.operator == name]
    assert of_it, f"{name} has no cases: add some to tests/support/growths.py"
    tried = set().union(*(grown_parts(case) for case in of_it))
    assert tried >= set(OPERATORS[name].grows), f"{name} has no cases for {set(OPERATORS[name].grows) - tried}"


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in NEED_TRAINING])
def test_the_laws_of_exactness_meet_every_operator_that_claims_it(name: str) -> None:
    growing = [case for case in EXACT if case.operator == name and grown_parts(case)]
    assert bool(growing) == OPERATORS[name].exact


@pytest.mark.parametrize("part", ["num_layers", "hidden_size", "ffn_size", "num_heads", "num_experts"])
def test_operators_meet_in_one_growth(part: str) -> None:
    assert any(part in operators_of(case.operator) and "=" in case.operator for case in GROWTHS)


# --- structure ----------------------------------------------------------------------------------


@every_growth
def test_every_parameter_of_the_real_model_once_in_its_order(case: GrowthCase) -> None:
    assert [(rule.target, rule.shape) for rule in case.map()] == real_stored(case.target)


@every_growth
def test_what_a_rule_reads_is_there_and_fits(case: GrowthCase) -> None:
    """Sources laid end to end are as large as their shape; each axis leads from this shape to the target's."""
    shapes = source_shapes(case.source)
    for rule in case.map():
        assert sum(math.prod(shapes[name]) for name in rule.sources) == math.prod(rule.source_shape) * bool(
            rule.sources
        )
        if rule.beyond:
            assert [shapes[name] for name in rule.beyond] == [shapes[name] for name in rule.sources]
        if rule.axes:
            assert tuple(axis.source for axis in rule.axes) == rule.source_shape
            assert tuple(len(axis.index) for axis in rule.axes) == rule.shape
        elif rule.weights == "copy":
            assert math.prod(rule.source_shape) == rule.numel


@every_growth
def test_axes_stay_within_the_source(case: GrowthCase) -> None:
    for axis in {id(axis): axis for rule in case.map() for axis in rule.axes}.values():
        size = len(axis.index)
        assert all(0 <= i < axis.source or i in (FRESH, MEAN, ZERO) for i in axis.index)
        assert {len(axis.value), len(axis.gradient), len(axis.kept), len(axis.beyond)} <= {0, size}
        assert all(value > 0 and math.isfinite(value) for value in axis.value)
        assert all(factor >= 0 and math.isfinite(factor) for factor in axis.gradient)
        assert not any(axis.keeps & (axis.indices < 0))


@every_growth
def test_rules_are_of_the_known_kinds(case: GrowthCase) -> None:
    for rule in case.map():
        assert rule.weights in {"copy", "mapped", "zeros", "normal", "ones", "drawn"}
        assert rule.moments in {"copy", "zeros", "none"}
        assert rule.gradient in {"exact", "estimated", "none"}
        assert bool(rule.axes) == (rule.weights == "mapped")
        assert rule.source == (rule.sources[0] if rule.sources else None)
        if not rule.sources:
            assert (rule.weights, rule.moments, rule.gradient) == (rule.init, moments(rule, "zeros"), "none")


@every_growth
def test_gradients_are_predicted_exactly_where_the_function_stays_only(case: GrowthCase) -> None:
    assert case.exact or "exact" not in {rule.gradient for rule in case.map()}


@every_growth
def test_every_source_parameter_is_used(case: GrowthCase) -> None:
    """But those of layers that a list leaves out."""
    used = {name for rule in case.map() for name in rule.sources}
    left_out = set(range(case.source.num_layers)) - set(case.options.layers or range(case.source.num_layers))
    assert {name for name in source_shapes(case.source) if name not in used} == {
        name for name, layer in layers_of(case.source).items() if layer in left_out
    }


@every_growth
def test_every_unit_of_the_source_is_used(case: GrowthCase) -> None:
    for rule in case.map():
        for axis in rule.axes:
            assert {i for i in axis.index if i >= 0} == set(range(axis.source))


@every_growth
def test_the_layers_of_a_block_stay_together(case: GrowthCase) -> None:
    """All of a target's layer comes from one layer of the source, or all of it from none; but for what stands in for a
    norm that the first layer goes without."""
    stand_ins = set(FAMILIES[case.source.family].stand_ins.values())
    sources, targets = layers_of(case.source), layers_of(case.target)
    for layer in range(case.target.num_layers):
        of_layer = [rule for rule in case.map() if targets[rule.target] == layer]
        assert len({sources[name] for rule in of_layer for name in rule.sources if name not in stand_ins}) <= 1
        assert len({bool(rule.sources) for rule in of_layer if "mlp.gate.weight" not in rule.target}) == 1


@every_growth
def test_reset_changes_the_moments_alone(case: GrowthCase) -> None:
    grown, reset = case.map("grow"), case.map("reset")
    assert {rule.moments for rule in reset} <= {"zeros", "none"}
    assert [replace(rule, moments="") for rule in reset] == [replace(rule, moments="") for rule in grown]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("policy", ["grow", "keep"])
def test_growing_to_the_same_size_is_the_plain_copy(operator: str, policy: str) -> None:
    options = listed(0, 1) if operator == "layers" else NO_OPTIONS
    for rule in (rule for one in SOURCES.values() for rule in growth_map(one, one, operator, policy, options)):
        assert (rule.source, rule.weights, rule.axes) == (rule.target, "copy", ())
        assert rule.moments == moments(rule, "copy")
        assert rule.gradient == ("none" if rule.moments == "none" else "exact")


# --- depth --------------------------------------------------------------------------------------


@every_deeper_growth
def test_what_stands_outside_the_layers_is_copied(case: GrowthCase) -> None:
    targets = layers_of(case.target)
    for rule in case.map():
        if targets[rule.target] is None:
            assert (rule.source, rule.weights, rule.moments) == (rule.target, "copy", moments(rule, "copy"))


@every_deeper_growth
def test_keep_is_grow_where_no_shape_changes(case: GrowthCase) -> None:
    assert case.map("keep") == case.map("grow")


@every_deeper_growth
def test_only_what_does_nothing_or_is_fresh_starts_without_moments(case: GrowthCase) -> None:
    """Copies keep their moments; layers that are silenced or fresh have none, in any of their parameters."""
    rules, layers = case.map(), layers_of(case.target)
    new = {layers[rule.target] for rule in rules if rule.weights == "zeros" or not rule.sources}
    for rule in rules:
        assert rule.moments == moments(rule, "zeros" if layers[rule.target] in new else "copy")


@for_each(case for case in DEEPER if case.operator == "identity")
def test_identity_adds_layers_that_do_nothing(case: GrowthCase) -> None:
    """The kept layers are the source's, each once and in its order; the others write nothing to the residual."""
    writers = {p.name for p in stored(case.target) if p.spec.writes_residual}
    rules, sources, targets = case.map(), layers_of(case.source), layers_of(case.target)
    new = {targets[rule.target] for rule in rules if rule.weights == "zeros"}
    kept = [rule for rule in rules if targets[rule.target] is not None and targets[rule.target] not in new]
    assert list(dict.fromkeys(sources[rule.source] for rule in kept)) == list(range(case.source.num_layers))
    assert all((rule.weights, rule.moments) == ("copy", moments(rule, "copy")) for rule in kept)
    for rule in rules:
        if targets[rule.target] in new:
            assert rule.weights == ("zeros" if rule.target in writers else "copy")
            assert rule.moments == moments(rule, "zeros")


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
        ("identity", 3, NO_OPTIONS, [0, 1, 2, 2], [3]),
        ("identity", 8, NO_OPTIONS, [0, 1, 2, 3, 3, 4, 5, 6, 7, 7], [4, 9]),
        ("identity", 3, listed(0, 1, 2, 0, 1, 2), [0, 1, 2, 0, 1, 2], [3, 4, 5]),
        ("identity", 3, listed(0, 1, 0, 2, 1), [0, 1, 0, 2, 1], [2, 4]),
    ],
)
def test_orders_by_hand(
    operator: str, small: int, options: GrowthOptions, sources: list[int | None], new: list[int]
) -> None:
    case = deeper(operator, small, len(sources), options)
    queries = [rule for rule in case.map() if rule.target.endswith("q_proj.weight")]
    assert [rule.source and layers_of(case.source)[rule.source] for rule in queries] == sources
    assert [layers_of(case.target)[rule.target] for rule in queries if rule.moments == "zeros"] == new


@pytest.mark.parametrize(("blocks", "new"), [(32, 8), (8, 2), (8, 4), (8, 8), (12, 3), (6, 1)])
def test_identity_places_its_layers_as_llama_pro_does(blocks: int, new: int) -> None:
    """scripts/block_expansion.py of TencentARC/LLaMA-Pro: a zeroed copy behind the last of every `split` blocks."""
    split, expected = blocks // new, []
    for block in range(blocks):
        expected.append((block, False))
        if (block + 1) % split == 0:
            expected.append((block, True))
    origins = layer_origins(LLAMA.with_layers(blocks), LLAMA.with_layers(blocks + new), "identity", NO_OPTIONS)
    assert [(origin.source, origin.silenced) for origin in origins] == expected


def test_by_factors_that_are_not_whole_identity_names_its_order() -> None:
    """So that keys and grown models of before, whose order was another one, are told apart."""

    def layers(blocks: int, deeper: int) -> tuple[int, ...] | None:
        shapes = LLAMA.with_layers(blocks), LLAMA.with_layers(deeper)
        return complete_options(*shapes, "identity", NO_OPTIONS).layers

    assert [layers(3, deeper) for deeper in (3, 6, 9)] == [None] * 3
    assert (layers(3, 4), layers(3, 5), layers(0, 2)) == ((0, 1, 2, 2), (0, 1, 1, 2, 2), None)


def test_fresh_layers_start_as_the_family_does_with_scaled_residual_projections() -> None:
    rules = {rule.target: rule for rule in deeper("random", 1, 8).map()}
    assert rules["model.layers.1.self_attn.q_proj.weight"].std == 0.02
    for writer in ("self_attn.o_proj", "mlp.down_proj"):
        assert rules[f"model.layers.7.{writer}.weight"].std == pytest.approx(0.02 / math.sqrt(16))
    assert rules["model.layers.1.input_layernorm.weight"].weights == "ones"


# --- width --------------------------------------------------------------------------------------


def test_each_part_is_grown_by_the_operator_named_for_it() -> None:
    case = growth("hidden_size=duplicate, ffn_size=zero_pad, num_heads=rms", hidden_size=32, ffn_size=48, num_heads=8)
    notes = {unit: one.note for (role, unit), one in unit_maps(case.source, case.target, case.operator).items()
             if role == "out" and one.note}  # fmt: skip
    assert notes == {
        "hidden": "hidden duplicate 16 > 32",
        "ffn": "ffn zero_pad 24 > 48",
        "query": "heads rms 4 > 8",
    }


def test_a_width_that_does_not_grow_is_left_alone() -> None:
    maps = unit_maps(LLAMA, replace(LLAMA, ffn_size=48), "duplicate")
    assert {unit for (_, unit), one in maps.items() if not one.is_identity} == {"ffn"}


@pytest.mark.parametrize("operator", ["zero_pad", "duplicate", "rms"])
def test_key_value_heads_that_stay_are_copied(operator: str) -> None:
    """And keep their moments where `keep` carries what no growth touched."""
    rules = {rule.target: rule for rule in growth(operator, num_heads=8).map("keep")}
    for name in ("k_proj", "v_proj"):
        rule = rules[f"model.layers.0.self_attn.{name}.weight"]
        assert (rule.weights, rule.moments) == ("copy", "copy")
    assert rules["model.layers.0.self_attn.q_proj.weight"].moments == "zeros"


@pytest.mark.parametrize("operator", ["zero_pad", "duplicate"])
def test_more_tokens_have_no_past_where_the_old_ones_keep_theirs(operator: str) -> None:
    rules = {rule.target: rule for rule in growth(operator, vocab_size=40).map()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows, columns = rules[name].axes
        assert rows.index == (*range(31), *[MEAN] * 9)
        assert rows.keeps.tolist() == [True] * 31 + [False] * 9
        assert columns == AxisMap("", 16, range(16))


def test_experts_are_copies_of_the_dense_layer() -> None:
    rules = {rule.target: rule for rule in mixture(experts=3).map()}
    both = rules["model.layers.1.mlp.experts.gate_up_proj"]
    assert both.sources == ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight")
    assert (both.source_shape, both.shape) == ((1, 48, 16), (3, 48, 16))
    assert both.axes[0].index == (0, 0, 0)
    router = rules["model.layers.1.mlp.gate.weight"]
    assert (router.sources, router.weights, router.moments) == ((), "normal", "zeros")


# --- from nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SOURCES.values(), ids=SOURCES)
def test_a_model_from_nothing(shape: ModelShape) -> None:
    rules = initial_map(shape)
    own = bool(FAMILIES[shape.family].module)
    assert [(r.target, r.shape, r.weights, r.moments) for r in rules] == [
        (one.name, one.shape, "drawn" if own else one.spec.init, "none" if one.spec.is_buffer else "zeros")
        for one in stored(shape)
    ]
    assert {(rule.source, rule.std, rule.gradient) for rule in rules} == {(None, 0.02, "none")}
