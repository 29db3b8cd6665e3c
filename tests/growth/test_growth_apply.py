"""Growing by slices, by the map alone: the laws that every operator in the table must keep."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from growths import GROWTHS, LLAMA, SOURCES, GrowthCase, deeper, for_each, growth, in_blocks, listed, mixture
from raystage.growth.apply import STATES, Grown, drawn, grown_steps, is_new
from raystage.growth.axis_maps import MEAN, AxisMap
from raystage.growth.depth import NO_OPTIONS
from raystage.growth.rules import GrowthMap, Rule, growth_map, initial_map, slices
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, Parameter, parameters
from raystage.models.table import reads
from real_models import SEED, grown, made_up, reader, whole

every_growth = for_each(GROWTHS)
POLICIES = ("grow", "reset", "keep")


def never_read(name: str, state: str, start: int, stop: int) -> np.ndarray:
    raise AssertionError(f"{name} is drawn: there is nothing to read")


def from_nothing(shape: ModelShape) -> dict[str, np.ndarray]:
    rules = initial_map(shape)
    return whole(rules, Grown(rules, never_read, SEED), "fp32")


def _takes_means(case: GrowthCase) -> bool:
    return any((axis.indices == MEAN).any() for rule in case.map() for axis in rule.axes)


# --- slices -------------------------------------------------------------------------------------


@for_each(GROWTHS[::2])
def test_growing_by_slices_is_growing_whole(case: GrowthCase) -> None:
    """Bit for bit, in every state, wherever the cuts lie; what is drawn anew included."""
    chance = np.random.default_rng(SEED)
    view = grown(case, dtype=np.float32)
    for rule in case.map():
        cuts = [0, *sorted(chance.integers(0, rule.numel + 1, size=3).tolist()), rule.numel]
        for state in STATES:
            complete = view.slice(rule.target, state, 0, rule.numel)
            parts = [view.slice(rule.target, state, a, b) for a, b in itertools.pairwise(cuts)]
            assert np.array_equal(np.concatenate(parts), complete)
            assert (complete.dtype, complete.shape) == (np.float32, (rule.numel,))
        new = [is_new(rule, a, b) for a, b in itertools.pairwise(cuts)]
        assert np.array_equal(np.concatenate(new), is_new(rule, 0, rule.numel))


@for_each([case for case in GROWTHS if not _takes_means(case)][::5])
def test_what_a_slice_reads_is_known_before(case: GrowthCase) -> None:
    """As readers are told who read ahead. Of a mean they are not told."""
    chance, read, view = np.random.default_rng(SEED), [], grown(case, dtype=np.float32)
    source = view._read

    def recorded(*asked: str | int) -> np.ndarray:
        read.append(asked)
        return source(*asked)

    view._read = recorded
    for rule in view.rules.values():
        start = int(chance.integers(0, rule.numel))
        stop = int(chance.integers(start, rule.numel)) + 1
        for state in STATES:
            read.clear()
            view.slice(rule.target, state, start, stop)
            assert sorted(filter(_is_any, view.reads(rule.target, state, start, stop))) == sorted(filter(_is_any, read))


def _is_any(slice_of: tuple[str, str, int, int]) -> bool:
    return slice_of[2] < slice_of[3]


@pytest.mark.parametrize("operator", ["zero_pad", "duplicate", "rms"])
def test_large_parameters_are_grown_in_pieces_with_the_same_bits(operator: str) -> None:
    """Over the sizes at which work is cut up inside: 2^20 mapped elements, 2^16 drawn ones."""
    source = ModelShape("llama", 1, 512, 4, 2, 4, 8, 1501, 12)
    target = ModelShape("llama", 1, 768, 4, 2, 4, 8, 1601, 12)
    rules = growth_map(source, target, operator, "grow")
    view = Grown(rules, reader(lambda state: made_up(source, state), np.float32), SEED)
    for rule in rules:
        if rule.numel > 2**20:
            complete = view.slice(rule.target, "fp32", 0, rule.numel)
            cuts = [0, 5, 2**16 - 1, 2**16 + 1, 768 * 700 + 3, 2**20 + 7, rule.numel]
            parts = [view.slice(rule.target, "fp32", a, b) for a, b in itertools.pairwise(cuts)]
            np.testing.assert_array_equal(np.concatenate(parts), complete)
    assert sum(rule.numel > 2**20 for rule in rules) == 2


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [
        ((4, 6), 100, [(0, 24)]),
        ((4, 6), 13, [(0, 12), (12, 24)]),
        ((4, 6), 4, [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24)]),
        ((2, 3, 2), 5, [(0, 4), (4, 8), (8, 12)]),
        ((5,), 2, [(0, 2), (2, 4), (4, 5)]),
        ((), 3, [(0, 1)]),
    ],
)
def test_slices_are_of_whole_rows_where_these_fit(
    shape: tuple[int, ...], most: int, expected: list[tuple[int, int]]
) -> None:
    assert list(slices(Rule("name", shape, "copy", "copy"), most)) == expected


def test_a_slice_reads_the_rows_it_needs_and_no_others() -> None:
    case = growth("duplicate", ffn_size=48)
    read: list[tuple[str, int, int]] = []

    def recorded(name: str, state: str, start: int, stop: int) -> np.ndarray:
        read.append((name, start, stop))
        return made_up(case.source)[name][start:stop]

    name = "model.layers.0.mlp.up_proj.weight"  # (48, 16) from (24, 16): row 25 is a copy of row 1
    Grown(case.map(), recorded, SEED).slice(name, "fp32", 25 * 16 + 3, 26 * 16)
    assert read == [(name, 16, 32)]


# --- moments ------------------------------------------------------------------------------------


def _trained(rules: GrowthMap) -> list[Rule]:
    """The rules of parameters: buffers have no moments."""
    return [rule for rule in rules if rule.moments != "none"]


@every_growth
def test_moments_follow_the_gradient(case: GrowthCase) -> None:
    """Where they are carried, those of first order scale as the gradient, by s, and those of second by s^2; where
    not, they are zero."""
    gradients = made_up(case.source, "gradient")
    squares = {name: values**2 for name, values in gradients.items()}
    rules = case.map()
    view = Grown(rules, reader(lambda state: squares if state == "exp_avg_sq" else gradients), SEED)
    for rule in _trained(rules):
        new, predicted = is_new(rule, 0, rule.numel), view.predicted_gradient(rule.target, 0, rule.numel)
        first = view.slice(rule.target, "exp_avg", 0, rule.numel)
        assert np.array_equal(first, np.where(new, 0.0, predicted))
        assert np.array_equal(view.slice(rule.target, "momentum_buffer", 0, rule.numel), first)
        second = view.slice(rule.target, "exp_avg_sq", 0, rule.numel)
        assert np.allclose(second, first**2, rtol=1e-12, atol=0)
        assert new.all() == (rule.moments == "zeros")


@every_growth
def test_moments_and_steps_go_together(case: GrowthCase) -> None:
    """A parameter without a past has neither moments nor steps; one with a past has both. Second moments are never
    negative. Each case has one of the policies."""
    policy = POLICIES[GROWTHS.index(case) % len(POLICIES)]
    rules, view = case.map(policy), grown(case, policy)
    steps = grown_steps(rules, dict.fromkeys(made_up(case.source), 5))
    for state in ("exp_avg", "exp_avg_sq"):
        for name, moments in whole(rules, view, state).items():
            assert bool(moments.any()) == (steps[name] == 5)
            assert state == "exp_avg" or moments.min() >= 0
    if policy == "reset":
        assert set(steps.values()) <= {0}


@every_growth
def test_keep_carries_what_stayed_as_it_was(case: GrowthCase) -> None:
    for grow, keep in zip(_trained(case.map("grow")), _trained(case.map("keep")), strict=True):
        stayed = grow.weights == "copy" and grow.shape == grow.source_shape
        assert keep == (grow if stayed else replace(grow, moments="zeros"))


def test_moments_by_hand() -> None:
    """Twofold duplicates: readers of the copies keep the first copy's moments, scaled as its gradient is."""
    case = growth("duplicate", ffn_size=48)
    name = "model.layers.0.mlp.down_proj.weight"
    first = made_up(case.source, "exp_avg")[name].reshape(16, 24)
    found = grown(case).slice(name, "exp_avg", 0, 16 * 48).reshape(16, 48)
    np.testing.assert_array_equal(found, np.hstack([first, np.zeros((16, 24))]))
    name = "model.layers.0.mlp.up_proj.weight"
    second = made_up(case.source, "exp_avg_sq")[name].reshape(24, 16)
    found = grown(case).slice(name, "exp_avg_sq", 0, 48 * 16).reshape(48, 16)
    np.testing.assert_allclose(found, np.vstack([second * 0.75**2, np.zeros((24, 16))]), rtol=1e-12)


# --- weights by hand ----------------------------------------------------------------------------


def test_new_tokens_are_the_mean_of_the_old_in_the_embedding_and_in_the_head() -> None:
    case = growth("duplicate", vocab_size=40)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old = made_up(case.source)[name].reshape(31, 16)
        found = grown(case).slice(name, "fp32", 0, 40 * 16).reshape(40, 16)
        np.testing.assert_array_equal(found[:31], old)
        np.testing.assert_allclose(found[31:], np.tile(old.mean(0), (9, 1)), rtol=1e-12)
        assert not grown(case).slice(name, "exp_avg", 31 * 16, 40 * 16).any()


def test_positions_begin_again() -> None:
    case = growth("zero_pad", "gpt2", context_length=20)
    name = "transformer.wpe.weight"
    old = made_up(case.source)[name].reshape(12, 16)
    found = grown(case).slice(name, "fp32", 0, 20 * 16).reshape(20, 16)
    np.testing.assert_array_equal(found, np.vstack([old, old[:8]]))


def test_zero_padding_by_hand() -> None:
    """`[E, 0]` in the embedding; `[W, A]` in what reads it, with A drawn anew; gains times sqrt(d/D)."""
    case = growth("zero_pad", hidden_size=24)
    old, view = made_up(case.source), grown(case)
    embedding = view.slice("model.embed_tokens.weight", "fp32", 0, 31 * 24).reshape(31, 24)
    np.testing.assert_array_equal(embedding[:, :16], old["model.embed_tokens.weight"].reshape(31, 16))
    assert not embedding[:, 16:].any()
    name = "model.layers.0.mlp.up_proj.weight"
    reading = view.slice(name, "fp32", 0, 24 * 24).reshape(24, 24)
    np.testing.assert_array_equal(reading[:, :16], old[name].reshape(24, 16))
    assert reading[:, 16:].std() == pytest.approx(0.02, rel=0.2)
    gains = view.slice("model.norm.weight", "fp32", 0, 24)
    np.testing.assert_allclose(gains[:16], old["model.norm.weight"] * np.sqrt(16 / 24), rtol=1e-12)
    assert (gains[16:] == 1).all()


def test_fused_projections_grow_by_their_parts() -> None:
    """GPT-2's queries, keys and values lie end to end in one matrix, inputs first."""
    case = growth("duplicate", "gpt2", hidden_size=32, num_heads=8, num_kv_heads=8)
    name = "transformer.h.1.attn.c_attn.bias"
    old = made_up(case.source)[name].reshape(3, 16)
    found = grown(case).slice(name, "fp32", 0, 96).reshape(3, 32)
    np.testing.assert_array_equal(found, np.hstack([old, old]))


def test_aki_takes_new_rows_from_the_next_layer() -> None:
    case = growth("aki", ffn_size=40)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    own, following = (made_up(case.source)[name].reshape(24, 16) for name in names)
    first, last = (grown(case).slice(name, "fp32", 0, 40 * 16).reshape(40, 16) for name in names)
    np.testing.assert_array_equal(first, np.vstack([own, following[:16]]))
    np.testing.assert_array_equal(last, np.vstack([following, following[:16]]))  # there is none after the last


def test_upcycled_experts_are_copies_and_the_router_is_drawn() -> None:
    case = mixture()
    view, old = grown(case), made_up(case.source)
    dense = np.concatenate([old[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")])
    experts = view.slice("model.layers.0.mlp.experts.gate_up_proj", "fp32", 0, 4 * 48 * 16).reshape(4, -1)
    np.testing.assert_array_equal(experts, np.tile(dense, (4, 1)))
    router = view.slice("model.layers.0.mlp.gate.weight", "fp32", 0, 4 * 16)
    assert router.std() == pytest.approx(0.02, rel=0.3)
    assert is_new(next(r for r in case.map() if r.target.endswith("mlp.gate.weight")), 0, 64).all()


# --- twice is once ------------------------------------------------------------------------------


def chained(first: GrowthCase, second: GrowthCase) -> tuple[GrowthMap, Grown]:
    """The second growth, of what the first has grown."""
    return second.map(), Grown(second.map(), grown(first).slice, SEED)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (
            deeper(operator, small, between, first),
            deeper(operator, between, large, second),
            deeper(operator, small, large, both),
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
def test_growing_deeper_twice_is_growing_once(first: GrowthCase, second: GrowthCase, both: GrowthCase) -> None:
    """Weights, moments and step counts: A -> B -> C is A -> C, where nothing is trained between."""
    rules, by_way = chained(first, second)
    for state in STATES:
        straight = whole(both.map(), grown(both), state)
        for name, values in whole(rules, by_way, state).items():
            np.testing.assert_array_equal(values, straight.pop(name))
        assert not straight
    seen = {name: 3 + number for number, name in enumerate(made_up(first.source))}
    assert grown_steps(rules, grown_steps(first.map(), seen)) == grown_steps(both.map(), seen)


def in_two_steps(operator: str, name: str, between: dict, last: dict) -> tuple[GrowthCase, GrowthCase, GrowthCase]:
    first, both = growth(operator, name, **between), growth(operator, name, **last)
    return first, GrowthCase(operator, name, first.target, both.target), both


@pytest.mark.parametrize(
    ("name", "between", "last"),
    [
        ("llama", {"num_heads": 8}, {"num_heads": 16, "num_kv_heads": 4}),
        ("llama tied", {}, {}),
        ("qwen2", {"num_heads": 6, "num_kv_heads": 3}, {"num_heads": 10, "num_kv_heads": 5}),
        ("mixtral", {"num_heads": 6}, {"num_heads": 10}),
    ],
)
def test_zero_padding_twice_is_zero_padding_once(name: str, between: dict, last: dict) -> None:
    """In weights, but for what is drawn anew: its distribution is the same, its numbers are not."""
    first, second, both = in_two_steps(
        "zero_pad",
        name,
        {"hidden_size": 24, "ffn_size": 30, **between},
        {"hidden_size": 48, "ffn_size": 50, **last},
    )
    assert second.target.norm_eps == pytest.approx(both.target.norm_eps, rel=1e-12)
    rules, by_way = chained(first, second)
    twice, once = whole(rules, by_way, "fp32"), whole(both.map(), grown(both), "fp32")
    for rule in both.map():
        kept = ~is_new(rule, 0, rule.numel)
        assert kept.any()
        np.testing.assert_allclose(twice[rule.target][kept], once[rule.target][kept], rtol=1e-12)
        np.testing.assert_array_equal(twice[rule.target] == 0, once[rule.target] == 0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "bert"])
def test_duplicating_twice_is_duplicating_once_in_effect(name: str) -> None:
    """Copies of copies are copies: the same units, and in all the same weight on each, however it is shared out."""
    heads = [_heads(name, number) for number in (8, 16)]
    first, second, both = in_two_steps(
        "duplicate",
        name,
        {"hidden_size": 32, "ffn_size": 48, **heads[0]},
        {"hidden_size": 64, "ffn_size": 96, **heads[1]},
    )
    rules, by_way = chained(first, second)
    twice, once = whole(rules, by_way, "fp32"), whole(both.map(), grown(both), "fp32")
    for parameter in parameters(both.target):
        if beside_norms(parameter):
            axes = next(rule.axes for rule in both.map() if rule.target == parameter.name)
            effects = [effect(parameter, axes, values[parameter.name]) for values in (twice, once)]
            np.testing.assert_allclose(*effects, rtol=1e-10, err_msg=parameter.name)


def _heads(name: str, number: int) -> dict[str, int]:
    return {} if name in ("llama", "qwen2") else {"num_heads": number, "num_kv_heads": number}


def beside_norms(parameter: Parameter) -> bool:
    """Whether it is neither a norm nor what reads one: these two share a scale between them."""
    return not any(axis.role in ("gain", "shift") or axis == reads("hidden") for axis in parameter.spec.axes)


def effect(parameter: Parameter, axes: tuple[AxisMap, ...], values: np.ndarray) -> np.ndarray:
    """A parameter with what reads the copies of one unit added up: that is what it does where these hold the same."""
    tensor = values.reshape(parameter.shape)
    for number, (axis, grown_axis) in enumerate(zip(parameter.spec.axes, axes, strict=bool(axes))):
        if axis.role == "in":
            sums = np.zeros((*np.moveaxis(tensor, number, -1).shape[:-1], grown_axis.source))
            np.add.at(np.moveaxis(sums, -1, 0), grown_axis.indices, np.moveaxis(tensor, number, 0))
            tensor = np.moveaxis(sums, -1, number)
    return tensor


# --- initialisation -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, shape in SOURCES.items() if not FAMILIES[shape.family].module])
def test_initialisation_does_not_depend_on_depth(name: str) -> None:
    """A parameter is drawn from (seed, its name): layer 0 starts alike whatever comes above it."""
    shape = SOURCES[name]
    shallow, deep = from_nothing(shape), from_nothing(shape.with_layers(4))
    for parameter, values in shallow.items():
        np.testing.assert_array_equal(values, deep[parameter])


def test_initialisation_is_the_familys() -> None:
    values = from_nothing(LLAMA)
    assert values["model.layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.15)
    assert (values["model.norm.weight"] == 1).all()
    assert not from_nothing(SOURCES["gpt2"])["transformer.h.0.attn.c_attn.bias"].any()


def test_what_is_drawn_depends_on_the_seed_and_the_name_alone() -> None:
    one, other = (Rule(name, (3, 50_000), "normal", "zeros", std=0.5) for name in ("one", "other"))
    values = drawn(one, 0, one.numel, SEED)
    np.testing.assert_array_equal(values[70_000:140_000], drawn(one, 70_000, 140_000, SEED))
    assert values.std() == pytest.approx(0.5, rel=0.01)
    assert not np.array_equal(values[:100], values[2**16 : 2**16 + 100])
    assert not np.array_equal(values, drawn(one, 0, one.numel, SEED + 1))
    assert not np.array_equal(values, drawn(other, 0, one.numel, SEED))


def test_fresh_layers_are_drawn_like_those_of_a_model_from_nothing() -> None:
    """But for the projections onto the residual stream, which start smaller by sqrt(2 L)."""
    case = deeper("random", 1, 8)
    new, nothing = whole(case.map(), grown(case, dtype=np.float32), "fp32"), from_nothing(case.target)
    for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm"):
        name = f"model.layers.3.{part}.weight"
        np.testing.assert_array_equal(new[name], nothing[name])
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        name = f"model.layers.3.{part}.weight"
        np.testing.assert_allclose(new[name], nothing[name] / 4, rtol=1e-6)
