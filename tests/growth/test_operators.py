"""The table of operators: what each is, what it can be asked and what it refuses, and which growths are exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import pytest

from growths import LLAMA, SOURCES, GrowthCase, deeper, growth, in_blocks, listed, mixture, tiny
from raystage.config.stage import Grow
from raystage.growth import depth
from raystage.growth.checks import changed_fields, refusal, with_norm_eps
from raystage.growth.depth import DEPTH_OPERATORS, NO_OPTIONS, GrowthOptions, LayerOrigin
from raystage.growth.operators import (
    OPERATORS,
    OPTIMIZER_STATE_POLICIES,
    PARTS,
    WIDTHS,
    Operator,
    complete_options,
    each_operator,
    in_short,
    is_trained,
    layer_origins,
    operators_of,
    parse_operator,
)
from raystage.growth.rules import growth_map

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
every_depth_operator = pytest.mark.parametrize(
    "operator", [pytest.param(one, id=one.name) for one in OPERATORS.values() if one.name in DEPTH_OPERATORS]
)
every_width_operator = pytest.mark.parametrize(
    "operator", [name for name, one in OPERATORS.items() if set(WIDTHS) <= set(one.grows)]
)


def needed(operator: Operator, sources: int, targets: int) -> GrowthOptions:
    """The options without which the operator cannot grow: for `layers` some list."""
    return listed(*depth.stack(sources, targets)) if operator.name == "layers" else NO_OPTIONS


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "shown"),
    [
        ("stack", "stack"),
        ("depth=identity, width=duplicate", "depth identity, width duplicate"),
        ("width=duplicate", "width duplicate"),
        ("num_layers=stack, ffn_size=rms", "depth stack, ffn_size rms"),
        ("width=rms, hidden_size=zero_pad", "hidden_size zero_pad, ffn_size rms, num_heads rms"),
        ("width=rms, num_experts=upcycle", "width rms, num_experts upcycle"),
    ],
)
def test_operators_for_people(operator: str, shown: str) -> None:
    assert in_short(parse_operator(operator)) == shown


@every_operator
def test_an_operator_is_what_its_entry_says(operator: Operator) -> None:
    assert OPERATORS[operator.name] is operator
    assert operator.summary
    assert operator.source
    assert set(operator.takes) <= {field.name for field in fields(GrowthOptions)} <= set(Grow.model_fields)
    assert operator.grows
    assert set(operator.grows) <= set(PARTS)
    assert (operator.name in DEPTH_OPERATORS) == ("num_layers" in operator.grows)


@every_depth_operator
@pytest.mark.parametrize(("sources", "targets"), [(1, 2), (2, 4), (3, 6)])
def test_layers_come_from_the_sources_layers(operator: Operator, sources: int, targets: int) -> None:
    case = deeper(operator.name, sources, targets, needed(operator, sources, targets))
    origins = layer_origins(case.source, case.target, operator.name, case.options)
    assert len(origins) == targets
    assert all(origin.new if origin.source is None else origin.source < sources for origin in origins)


@pytest.mark.parametrize(
    ("small", "large", "block"), [(2, 4, 2), (4, 6, 2), (6, 8, 2), (3, 7, 1), (4, 12, 4), (8, 12, 4), (3, 3, 3)]
)
def test_a_block_follows_from_the_depths(small: int, large: int, block: int) -> None:
    source, target = LLAMA.with_layers(small), LLAMA.with_layers(large)
    assert complete_options(source, target, "middle", NO_OPTIONS) == in_blocks(block)
    assert growth_map(source, target, "middle", "grow") == growth_map(
        source, target, "middle", "grow", in_blocks(block)
    )
    assert complete_options(source, target, "middle", in_blocks(1)) == in_blocks(1)


def test_policies() -> None:
    assert OPTIMIZER_STATE_POLICIES == ("grow", "reset", "keep")


# --- how operators are named --------------------------------------------------------------------


@every_operator
def test_an_operators_name_stands_for_all_that_it_grows(operator: Operator) -> None:
    assert parse_operator(operator.name) == operator.name
    assert operators_of(operator.name) == dict.fromkeys(operator.grows, operator)
    assert each_operator(operator.name) == (operator,)
    assert is_trained(operator.name) == operator.trains


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        ({"num_layers": "stack"}, "num_layers=stack"),
        ({"depth": "stack", "width": "duplicate"},
         "num_layers=stack, hidden_size=duplicate, ffn_size=duplicate, num_heads=duplicate"),
        ({"num_heads": "rms", "num_layers": "random"}, "num_layers=random, num_heads=rms"),
        ({"width": "duplicate", "ffn_size": "zero_pad"},
         "hidden_size=duplicate, ffn_size=zero_pad, num_heads=duplicate"),
        ({"ffn_size": "zero_pad", "width": "duplicate"},
         "hidden_size=duplicate, ffn_size=zero_pad, num_heads=duplicate"),
        ({"num_experts": "upcycle", "depth": "identity"}, "num_layers=identity, num_experts=upcycle"),
        ("num_layers=stack, hidden_size=duplicate", "num_layers=stack, hidden_size=duplicate"),
        ("hidden_size = duplicate,depth=stack", "num_layers=stack, hidden_size=duplicate"),
    ],
)  # fmt: skip
def test_parts_have_operators_of_their_own(value: str | Mapping[str, str], canonical: str) -> None:
    assert parse_operator(value) == canonical
    assert parse_operator(canonical) == canonical
    assert ", ".join(f"{part}={one.name}" for part, one in operators_of(canonical).items()) == canonical


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("stak", r"^found the operator 'stak'; expected one of stack, interleave, .*; did you mean 'stack'\?$"),
        (3, r"^found the operator 3; expected one of stack, "),
        ({"num_layers": "no"}, r"^found the operator 'no'; expected one of stack, "),
        ({"num_layers": None}, r"^found the operator nothing; expected one of stack, "),
        ({"layers": "stack"}, r"^found the part 'layers'; expected one of depth, width, num_layers, hidden_size, "),
        ("hidden_size=duplicate, x=stack", r"^found the part 'x'; expected one of depth, "),
        ({"width": "stack"}, r"^found stack for width; stack grows num_layers only$"),
        ({"depth": "duplicate"},
         r"^found duplicate for depth; duplicate grows hidden_size, ffn_size and num_heads only$"),
        ({"num_experts": "duplicate"}, r"^found duplicate for num_experts; duplicate grows "),
        ({}, r"^found no part; expected for example \{num_layers: stack, width: duplicate\}$"),
    ],
)  # fmt: skip
def test_operators_that_are_none(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_operator(value)


def test_a_growth_is_trained_where_one_of_its_operators_is() -> None:
    assert is_trained("num_layers=stack, hidden_size=masked")
    assert not is_trained("num_layers=stack, hidden_size=duplicate")


def test_each_operator_of_a_growth_comes_once() -> None:
    assert [one.name for one in each_operator("num_layers=stack, hidden_size=rms, ffn_size=rms")] == ["stack", "rms"]


# --- what changed -------------------------------------------------------------------------------


def test_turned_positions_have_no_parameters_and_eps_is_growths_own() -> None:
    longer = {"context_length": 20, "norm_eps": 1.0}
    assert changed_fields(LLAMA, replace(LLAMA, **longer, num_heads=8)) == ["num_heads"]
    assert changed_fields(SOURCES["gpt2"], replace(SOURCES["gpt2"], **longer)) == ["context_length"]


@pytest.mark.parametrize(
    ("name", "operator", "size", "factor"),
    [
        ("llama", "zero_pad", 24, 16 / 24),
        ("llama", "duplicate", 32, 1.0),
        ("llama", "duplicate", 40, 32 / 40),
        ("llama", "rms", 24, 1.0),
        ("llama", "stack", 16, 1.0),
        ("gpt2", "zero_pad", 24, 1.0),
        ("gpt2", "duplicate", 40, 32 / 40),
        ("qwen3", "zero_pad", 24, 1.0),
    ],
)
def test_eps_goes_along_with_the_mean_square(name: str, operator: str, size: int, factor: float) -> None:
    source = SOURCES[name]
    grown = with_norm_eps(source, replace(source, hidden_size=size), operator)
    assert grown.norm_eps == pytest.approx(source.norm_eps * factor, rel=1e-12)


# --- what is exact ------------------------------------------------------------------------------

SIX = {"num_heads": 6, "num_kv_heads": 6}


@pytest.mark.parametrize(
    ("case", "exact"),
    [
        (deeper("stack", 2, 4), False),
        (deeper("stack", 2, 2), True),
        (deeper("layers", 2, 2, listed(0, 1)), True),
        (deeper("layers", 2, 2, listed(1, 0)), False),
        (deeper("layers", 2, 4, listed(0, 1, 0, 1)), False),
        (deeper("random", 2, 4), False),
        (deeper("identity", 2, 4), True),
        (deeper("identity", 2, 4, name="gpt2"), True),
        (deeper("identity", 2, 4, name="bert"), False),
        (growth("zero_pad", hidden_size=24), True),
        (growth("zero_pad", "gpt2", hidden_size=24, **SIX), False),
        (growth("zero_pad", "bert", hidden_size=24, **SIX), False),
        (growth("zero_pad", "qwen3", hidden_size=24), False),
        (growth("zero_pad", "gpt2", ffn_size=30), True),
        (growth("zero_pad", "bert", ffn_size=30), True),
        (growth("zero_pad", num_heads=8), True),
        (growth("duplicate", hidden_size=24), True),
        (growth("duplicate", "gpt2", hidden_size=24, **SIX), True),
        (growth("duplicate", "bert", hidden_size=24, **SIX), False),
        (growth("duplicate", "bert", hidden_size=32, num_heads=8, num_kv_heads=8), True),
        (growth("duplicate", num_heads=4, num_kv_heads=4), True),
        (growth("aki", ffn_size=48), False),
        (growth("rms", hidden_size=32), False),
        (growth("rms", vocab_size=40), True),
        (growth("num_layers=stack", vocab_size=40), True),
        (growth("masked", hidden_size=24), True),
        (growth("learned", ffn_size=48), False),
        (mixture(), True),
        (growth("num_layers=identity, hidden_size=duplicate", num_layers=4, hidden_size=32), True),
        (growth("num_layers=stack, hidden_size=duplicate", num_layers=4, hidden_size=32), False),
        (growth("num_layers=identity, hidden_size=duplicate, ffn_size=rms", hidden_size=32, ffn_size=48), False),
    ],
    ids=str,
)  # fmt: skip
def test_exact_or_not_by_hand(case: GrowthCase, exact: bool) -> None:
    assert case.exact is exact


# --- what is refused ----------------------------------------------------------------------------


@every_depth_operator
def test_no_depth_operator_removes_layers_or_changes_what_it_does_not_grow(operator: Operator) -> None:
    """A list may: it names the layers that stay."""
    fewer, more = LLAMA.with_layers(2), LLAMA.with_layers(4)
    options = needed(operator, 2, 4)
    assert refusal(fewer, more, operator.name, options) is None
    assert refusal(fewer, replace(more, context_length=99), operator.name, options) is None
    back = refusal(more, fewer, operator.name, needed(operator, 4, 2))
    assert (back is None) if operator.name == "layers" else back[0] == "num_layers"


@every_operator
def test_parts_that_are_not_grown_are_refused_with_a_hint(operator: Operator) -> None:
    larger = {"num_layers": 4, "hidden_size": 32, "num_heads": 8, "num_kv_heads": 4, "ffn_size": 48}
    for field, size in larger.items():
        part = "num_heads" if field == "num_kv_heads" else field
        if part not in operator.grows:
            found = refusal(LLAMA, replace(LLAMA, **{field: size}), operator.name)
            own = "width" if "hidden_size" in operator.grows else operator.grows[0]
            assert found[0] == field
            assert found[1].startswith(f"found {size} after {getattr(LLAMA, field)}; {operator.name} grows ")
            assert f" only; expected for example operator: {{{own}: {operator.name}, " in found[1]
            with pytest.raises(ValueError, match=f"^found {size} after "):
                growth_map(LLAMA, replace(LLAMA, **{field: size}), operator.name, "grow")


@every_width_operator
def test_no_width_shrinks(operator: str) -> None:
    for field, size in (("hidden_size", 8), ("ffn_size", 23), ("num_heads", 2), ("vocab_size", 30)):
        before = getattr(LLAMA, field)
        found = refusal(LLAMA, replace(LLAMA, **{field: size}), operator)
        assert found == (field, f"found {size} after {before}; expected at least {before}")
    assert refusal(SOURCES["llama without groups"], LLAMA, operator)[0] == "num_kv_heads"
    assert refusal(SOURCES["gpt2"], replace(SOURCES["gpt2"], context_length=11), operator)[0] == "context_length"


@every_operator
def test_no_operator_changes_the_size_of_heads_or_ties_embeddings(operator: Operator) -> None:
    options = needed(operator, 2, 2)
    field, problem = refusal(LLAMA, replace(LLAMA, head_size=8), operator.name, options)
    assert (field, problem) == (
        "head_size",
        "found heads of 8 after 4, and heads grow in number, not in size; expected head_size: 4, with for example "
        "num_heads: 8",
    )
    field, problem = refusal(LLAMA, replace(LLAMA, tied_embeddings=True), operator.name, options)
    assert field == "tied_embeddings"
    assert problem.startswith(f"found true after false; {operator.name} grows ")


MIXTURES = "a mixtral of a llama or a mistral, a qwen3_moe of a qwen3"


@every_operator
def test_a_family_becomes_no_other(operator: Operator) -> None:
    field, problem = refusal(LLAMA, SOURCES["qwen2"], operator.name, needed(operator, 2, 2))
    assert field == "family"
    upcycles = operator.name == "upcycle"
    said = f"upcycle makes {MIXTURES}" if upcycles else f"{operator.name} grows "
    assert problem.startswith(f"found qwen2 after llama; {said}")


@pytest.mark.parametrize(
    ("case", "field", "said"),
    [
        (mixture(experts=2, name="mixtral"), "num_experts", "found 2 after 4; expected at least 4"),
        (
            mixture(experts=8, name="mixtral"), "num_experts",
            "found 8 after 4; upcycle makes experts of a dense model, and there are some already",
        ),
        (mixture(name="qwen2"), "family", f"found mixtral after qwen2; upcycle makes {MIXTURES}"),
        (mixture(name="gpt2"), "family", f"found mixtral after gpt2; upcycle makes {MIXTURES}"),
        (
            replace(mixture(), target=replace(mixture().target, experts_per_token=5)), "experts_per_token",
            "found 5 of 4 experts; expected 1 to 4",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_experts_that_cannot_be_made(case: GrowthCase, field: str, said: str) -> None:
    assert refusal(case.source, case.target, case.operator) == (field, said)


@pytest.mark.parametrize(
    ("operator", "name", "changes", "field", "said"),
    [
        ("duplicate", "llama", {"num_heads": 7}, "num_kv_heads", "found 2; expected a divisor of num_heads (7)"),
        ("duplicate", "llama", {"num_heads": 6}, "num_heads",
         "found 6 heads for a hidden size of 16; expected a divisor of it, as transformers asks of a llama"),
        ("duplicate", "gpt2", {"hidden_size": 32}, "num_heads",
         "found 4 heads of 4 for a hidden size of 32; expected num_heads: 8, since a gpt2's heads fill the hidden "
         "size"),
        ("duplicate", "gpt2", {"num_heads": 8, "num_kv_heads": 8}, "num_heads",
         "found 8 heads of 4 for a hidden size of 16; expected num_heads: 4, since a gpt2's heads fill the hidden "
         "size"),
        ("zero_pad", "bert", {"num_heads": 8, "hidden_size": 32}, "num_kv_heads",
         "found 4 for 8 heads; expected as many, since a bert has no grouped queries"),
        ("zero_pad", "llama", {"num_kv_heads": 4}, "num_kv_heads",
         "found 4 query and 4 key/value heads after 4 and 2, which leaves zero_pad no place for every query head "
         "beside its own key/value head; expected as many query heads for each key/value head as before, or more"),
        ("duplicate", "llama", {"num_kv_heads": 4}, None, None),
        ("duplicate", "mixtral", {"num_kv_heads": 3, "num_heads": 3}, "num_heads",
         "found 3 after 4; expected at least 4"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit(
    operator: str, name: str, changes: dict[str, int], field: str | None, said: str | None
) -> None:
    found = refusal(SOURCES[name], replace(SOURCES[name], **changes), operator)
    assert found == (None if field is None else (field, said))


def test_three_query_heads_have_no_place_beside_one_copy_for_two() -> None:
    """Of three key/value heads the third copies the first; the second has but one copy, for two of its three."""
    source = tiny("mistral", num_heads=6, num_kv_heads=2)
    field, problem = refusal(source, replace(source, num_kv_heads=3), "duplicate")
    assert field == "num_kv_heads"
    assert problem.startswith("found 6 query and 3 key/value heads after 6 and 2, which leaves duplicate no place ")


@every_depth_operator
def test_only_fresh_layers_come_from_none(operator: Operator) -> None:
    found = refusal(LLAMA.with_layers(0), LLAMA.with_layers(2), operator.name, needed(operator, 1, 2))
    from_none = [name for name, one in DEPTH_OPERATORS.items() if one.fewest == 0]
    if operator.name in from_none:
        assert DEPTH_OPERATORS[operator.name].layers(0, 2, NO_OPTIONS) == (LayerOrigin(None, new=True),) * 2
        assert found is None
    else:
        said = f"found {operator.name!r} after 0 layers, which leave it nothing to copy; expected "
        assert found == ("operator", said + " or ".join(from_none))


OPTIONS = {
    "layers": listed(0, 1, 0, 1),
    "block": in_blocks(2),
    "grow_tokens": GrowthOptions(grow_tokens=1000),
    "fit_steps": GrowthOptions(fit_steps=10),
}


def test_every_option_is_tried() -> None:
    assert set(OPTIONS) == {field.name for field in fields(GrowthOptions)}


@pytest.mark.parametrize("option", OPTIONS)
@every_operator
def test_an_option_is_refused_by_operators_that_do_not_take_it(operator: Operator, option: str) -> None:
    targets = 4 if "num_layers" in operator.grows else 2
    found = refusal(LLAMA.with_layers(2), LLAMA.with_layers(targets), operator.name, OPTIONS[option])
    if option in operator.takes:
        assert found is None
    else:
        takers = " or ".join(other.name for other in OPERATORS.values() if option in other.takes)
        assert found[0] == option
        assert f"but {operator.name} takes no {option}; expected operator: {takers}, or no {option}" in found[1]


def test_an_option_is_taken_where_one_of_the_operators_takes_it() -> None:
    wider = replace(LLAMA, num_layers=4, hidden_size=32)
    assert refusal(LLAMA, wider, "num_layers=middle, hidden_size=duplicate", in_blocks(2)) is None
    field, problem = refusal(LLAMA, wider, "num_layers=stack, hidden_size=duplicate", in_blocks(2))
    assert field == "block"
    assert problem.startswith("found 2, but the operator (num_layers=stack, hidden_size=duplicate) takes no block; ")


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
        growth_map(LLAMA.with_layers(3), LLAMA.with_layers(7), operator, policy)


@pytest.mark.parametrize(
    ("operator", "targets", "options", "field", "said"),
    [
        ("layers", 4, listed(0, 1, 2), "layers", "found a list of 3; expected 4 entries, one for each of num_layers"),
        ("layers", 2, listed(0, 3), "layers", "found 3; expected the source's layers (0 to 2)"),
        ("middle", 5, in_blocks(4), "block", "found 4; expected at most the source's 3 layers"),
        ("middle", 6, in_blocks(2), "block",
         "found 2, which does not divide the 3 new layers; expected a divisor of 3"),
        ("identity", 4, listed(0, 2, 1, 2), "layers",
         "found layers that first come in the order [0, 2, 1]; expected all of 0 to 2 in theirs, since the first "
         "of each is the kept one"),
        ("identity", 2, NO_OPTIONS, "num_layers", "found 2 layers after 3; expected at least 3"),
    ],
)  # fmt: skip
def test_depth_options_that_do_not_fit(
    operator: str, targets: int, options: GrowthOptions, field: str, said: str
) -> None:
    assert refusal(LLAMA.with_layers(3), LLAMA.with_layers(targets), operator, options) == (field, said)
