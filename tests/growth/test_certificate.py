"""What a growth did, measured on real models in one process: answers, predictions, duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from growths import tiny
from raystage.growth.apply import Grown
from raystage.growth.axis_maps import AxisMap
from raystage.growth.certificate import (
    Answers,
    ask,
    gradient_errors,
    logit_differences,
    masked_loss,
    mean_loss,
    rms_ratios,
    some_of,
    where_predicted,
)
from raystage.growth.checks import with_norm_eps
from raystage.growth.duplicates import DUPLICATE_STEPS, duplicate_distance, find_duplicates
from raystage.growth.explain import layer_sources
from raystage.growth.rules import GrowthMap, growth_map
from raystage.models.build import build
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, parameters
from raystage.results.record import Certificate
from real_models import made_up

IDS = np.random.default_rng(1).integers(31, size=(3, 10))
MASK = np.ones_like(IDS)
MASK[2, 6:] = 0
Weights = Mapping[str, np.ndarray]


def network_of(shape: ModelShape, weights: Weights) -> torch.nn.Module:
    network = build(shape).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]).view(parameter.shape))
    return network


def grown_weights(rules: GrowthMap, source: ModelShape) -> Weights:
    """fp32, from made-up ones."""
    grown = Grown(rules, lambda name, state, start, stop: made_up(source)[name][start:stop].astype(np.float32), 0)
    return {rule.target: grown.slice(rule.target, "fp32", 0, rule.numel) for rule in rules}


def grow(family: str, operator: str, **changes: int) -> tuple[ModelShape, ModelShape, GrowthMap]:
    source = tiny(family)
    target = with_norm_eps(source, replace(source, **changes), operator)
    return source, target, growth_map(source, target, operator, "grow")


def answers(source: ModelShape, target: ModelShape, rules: GrowthMap) -> tuple[Answers, Answers]:
    """Of the source by way of a file, as a run keeps them, and of the target."""
    asked = ask(network_of(source, made_up(source)), IDS, source.num_layers, source.vocab_size, mask=MASK)
    before = Answers.from_tensors(load(save({n: np.ascontiguousarray(t) for n, t in asked.to_tensors().items()})))
    network = network_of(target, grown_weights(rules, source))
    where = where_predicted(rules, before.gradients)
    return before, ask(network, IDS, target.num_layers, source.vocab_size, mask=MASK, where=where)


WIDE = {"hidden_size": 32, "num_heads": 8, "num_kv_heads": 4, "ffn_size": 48}
WIDE_FILLED = {**WIDE, "num_kv_heads": 8}
EXACT = [
    ("llama", "identity", {"num_layers": 5}),
    ("llama", "duplicate", WIDE),
    ("llama", "zero_pad", {**WIDE, "hidden_size": 24}),
    ("llama", "zero_pad", {"vocab_size": 40}),
    ("gpt2", "duplicate", WIDE_FILLED),
    ("bert", "duplicate", WIDE_FILLED),
    ("mixtral", "duplicate", WIDE),
]


@pytest.mark.parametrize(("family", "operator", "changes"), EXACT)
def test_an_exact_growth_changes_neither_logits_nor_what_gradients_follow(
    family: str, operator: str, changes: dict
) -> None:
    source, target, rules = grow(family, operator, **changes)
    before, after = answers(source, target, rules)
    assert max(logit_differences(before.logits, after.logits, MASK)) < 1e-5
    exact, estimated = gradient_errors(rules, before.gradients, after.gradients)
    assert 0 <= exact < 1e-3  # rounding; a bias of BERT's keys is all of it
    assert (estimated is None) == (family != "bert")  # behind whose norms some are known in sum alone


def test_a_stacked_model_is_another_function_whose_gradients_nobody_predicts() -> None:
    source, target, rules = grow("llama", "stack", num_layers=4)
    before, after = answers(source, target, rules)
    largest, mean = logit_differences(before.logits, after.logits, MASK)
    assert largest > mean > 0.1
    exact, estimated = gradient_errors(rules, before.gradients, after.gradients)
    assert exact is None
    assert estimated > 0.1


@pytest.mark.parametrize("operator", ["identity", "duplicate"])
def test_a_wrong_gradient_factor_is_found(operator: str) -> None:
    """One tensor's prediction is off by a half."""
    changes = {"num_layers": 4} if operator == "identity" else WIDE
    source, target, rules = grow("llama", operator, **changes)
    before, after = answers(source, target, rules)
    name = "model.layers.0.mlp.up_proj.weight"
    wrong = replace(after.gradients[name], values=1.5 * after.gradients[name].values)
    exact, _ = gradient_errors(rules, before.gradients, {**after.gradients, name: wrong})
    assert exact == pytest.approx(1 / 3, rel=1e-3)


def test_gradients_are_those_of_autograd_and_leave_nothing_behind() -> None:
    shape = tiny("llama")
    network = network_of(shape, made_up(shape))
    asked = ask(network, IDS, shape.num_layers, shape.vocab_size, mask=MASK)
    assert all(parameter.grad is None for parameter in network.parameters())
    ids, mask = torch.from_numpy(IDS), torch.from_numpy(MASK)
    masked_loss(network(input_ids=ids, attention_mask=mask).logits, ids, mask, True).backward()
    for name, parameter in network.named_parameters():
        sketch = asked.gradients[name]
        whole = parameter.grad.flatten().numpy()
        read = sketch.read(0, whole.size)
        assert np.isfinite(read).sum() == sketch.values.size > 0
        np.testing.assert_allclose(read[np.isfinite(read)], whole[np.isfinite(read)], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(sketch.read(3, 11), read[3:11])


def test_padding_does_not_count() -> None:
    shape = tiny("llama")
    network = network_of(shape, made_up(shape))
    other = IDS.copy()
    other[2, 6:] = 0
    one, two = (ask(network, ids, shape.num_layers, shape.vocab_size, mask=MASK) for ids in (IDS, other))
    assert one.activation_rms == pytest.approx(two.activation_rms, rel=1e-6)
    assert logit_differences(one.logits, two.logits, MASK)[0] < 1e-5 < logit_differences(one.logits, two.logits)[0]
    assert mean_loss(one.logits, IDS, MASK) == pytest.approx(mean_loss(two.logits, other, MASK), rel=1e-5)


def test_activation_rms_is_that_of_what_leaves_each_layer() -> None:
    shape = tiny("gpt2")
    network = network_of(shape, made_up(shape))
    asked = ask(network, IDS, shape.num_layers, shape.vocab_size)
    states = network(input_ids=torch.from_numpy(IDS), output_hidden_states=True).hidden_states
    assert len(asked.activation_rms) == shape.num_layers
    assert asked.activation_rms[0] == pytest.approx(states[1].pow(2).mean().sqrt().item(), rel=1e-5)


def test_ratios_compare_a_layer_with_the_one_it_comes_from() -> None:
    source, target, rules = grow("llama", "random", num_layers=4)
    layers = layer_sources(source, target, rules)
    assert layers == (0, 1, None, None)
    assert rms_ratios((2.0, 4.0), (2.0, 8.0, 6.0, 4.0), layers) == (1.0, 2.0, 1.5, 1.0)
    assert rms_ratios((), (2.0, 8.0), (None, None)) == (None, None)
    assert rms_ratios((2.0,), (), (0, 0)) == (None, None)


def test_answers_of_before_gradients_were_kept_are_read() -> None:
    old = Answers.from_tensors({"logits": np.zeros((1, 2, 3)), "input_ids": np.zeros((1, 2))})
    assert (old.activation_rms, old.gradients) == ((), {})
    _, _, rules = grow("llama", "identity", num_layers=4)
    assert gradient_errors(rules, old.gradients, {}) == (None, None)


def test_a_sample_is_in_order_and_always_the_same() -> None:
    assert some_of(5, 8).tolist() == [0, 1, 2, 3, 4]
    sample = some_of(1000, 8)
    assert len(set(sample.tolist())) == 8
    assert sample.tolist() == sorted(sample.tolist()) == some_of(1000, 8).tolist()


def test_outside_checks_rely_on_the_first_fields_of_a_certificate() -> None:
    names = [field.name for field in fields(Certificate)]
    assert names[:3] == ["eval_loss_before", "eval_loss_after", "max_logit_difference"]


# --- duplicates -----------------------------------------------------------------------------------


def distance(rules: GrowthMap, weights: Weights, family: str = "llama") -> float | None:
    pairs = find_duplicates(rules, FAMILIES[family].embeddings)
    return duplicate_distance(
        [tuple(weights[name][places] for name, places in (pair.one, pair.other)) for pair in pairs]
    )


def trained(shape: ModelShape, weights: Weights) -> Weights:
    """After as many steps as duplicates are given, on the same few tokens."""
    network = network_of(shape, weights)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    ids, mask = torch.from_numpy(IDS), torch.from_numpy(MASK)
    for _ in range(DUPLICATE_STEPS):
        optimizer.zero_grad()
        masked_loss(network(input_ids=ids, attention_mask=mask).logits, ids, mask, True).backward()
        optimizer.step()
    return {name: parameter.detach().flatten().numpy() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    ("operator", "changes"), [("duplicate", WIDE), ("duplicate", {"ffn_size": 72}), ("stack", {"num_layers": 4})]
)
def test_copies_are_equal_at_first_and_become_different_in_training(operator: str, changes: dict) -> None:
    source, target, rules = grow("llama", operator, **changes)
    weights = grown_weights(rules, source)
    assert distance(rules, weights) == 0
    assert distance(rules, trained(target, weights)) > 1e-3


def test_an_even_split_locks_its_duplicates() -> None:
    """Bert2BERT's and Net2Net's halves without a difference between them: what the figure is there to show."""
    source, target, rules = grow("llama", "duplicate", ffn_size=48)
    even = [replace(rule, axes=tuple(map(evenly, rule.axes))) for rule in rules]
    weights = grown_weights(even, source)
    before, after = (ask(network_of(*one), IDS, 2, 31) for one in ((source, made_up(source)), (target, weights)))
    assert logit_differences(before.logits, after.logits)[0] < 1e-5  # exact as the uneven one is
    assert distance(even, trained(target, weights)) < 1e-6


def evenly(axis: AxisMap) -> AxisMap:
    return replace(axis, value=(0.5,) * len(axis.index)) if axis.value else axis


@pytest.mark.parametrize(("operator", "changes"), [("zero_pad", WIDE), ("random", {"num_layers": 4})])
def test_a_growth_without_copies_has_no_duplicates(operator: str, changes: dict) -> None:
    source, _, rules = grow("llama", operator, **changes)
    assert find_duplicates(rules) == ()
    assert distance(rules, grown_weights(rules, source)) is None


def test_every_duplicate_is_copied_from_the_same_element() -> None:
    """In depth and width at once, of fused projections too."""
    source, target, _ = grow("gpt2", "duplicate", **WIDE_FILLED, num_layers=2)
    target = replace(target, num_layers=4)
    operator = "num_layers=stack, hidden_size=duplicate, ffn_size=duplicate, num_heads=duplicate"
    rules = growth_map(source, target, operator, "grow")
    numbers = {parameter.name: np.arange(parameter.numel, dtype=np.float64) for parameter in parameters(source)}
    plain = [replace(rule, axes=tuple(replace(axis, value=()) for axis in rule.axes)) for rule in rules]
    grown = Grown(plain, lambda name, state, start, stop: numbers[name][start:stop], 0)
    origins = {rule.target: grown.slice(rule.target, "fp32", 0, rule.numel) for rule in rules}
    pairs = find_duplicates(rules)
    kinds = {pair.one[0] == pair.other[0] for pair in pairs}
    assert kinds == {True, False}  # of units within a parameter, and of layers
    for pair in pairs:
        np.testing.assert_array_equal(origins[pair.one[0]][pair.one[1]], origins[pair.other[0]][pair.other[1]])
        assert pair.one[0] != pair.other[0] or not set(pair.one[1]) & set(pair.other[1])


def test_what_is_zero_on_both_sides_is_no_duplicate() -> None:
    assert duplicate_distance([(np.zeros(3), np.zeros(3))]) is None
    assert duplicate_distance([(np.zeros(3), np.zeros(3)), (np.ones(2), 2 * np.ones(2))]) == 0.5
