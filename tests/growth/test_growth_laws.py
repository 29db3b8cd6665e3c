"""What growing does to the function and to its gradients, shown by the real models of transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch

from growths import EXACT, SOURCES, GrowthCase, deeper, for_each, growth, mixture
from raystage.growth.apply import Grown
from raystage.growth.axis_maps import MEAN, AxisMap
from raystage.growth.checks import is_exact
from raystage.growth.rules import Rule
from raystage.models.families import FAMILIES
from real_models import (
    built,
    gradients,
    grown,
    logits_for,
    made_up,
    reader,
    source_gradients,
    source_logits,
    weights,
)

every_exact_growth = for_each(EXACT)


def difference(case: GrowthCase, dtype: torch.dtype) -> float:
    """The largest difference of logits, over their scale where that is above 1."""
    before = source_logits(case.source, dtype)
    values = weights(case, np.float64 if dtype == torch.float64 else np.float32)
    with torch.no_grad():
        after = logits_for(built(case.target, values, dtype), case.source)
    return ((after - before).abs().max() / max(1.0, before.abs().max().item())).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@every_exact_growth
def test_an_exact_growth_keeps_the_function(case: GrowthCase, dtype: torch.dtype, tolerance: float) -> None:
    assert difference(case, dtype) <= tolerance


@pytest.mark.parametrize(
    "case",
    [
        deeper("stack", 2, 4),
        deeper("random", 2, 3),
        deeper("identity", 2, 4, name="bert"),
        growth("aki", ffn_size=48),
        growth("aki", hidden_size=32),
        growth("rms", ffn_size=36),
        growth("rms", hidden_size=24),
        growth("zero_pad", "gpt2", hidden_size=24, num_heads=6, num_kv_heads=6),
        growth("zero_pad", "bert", hidden_size=24, num_heads=6, num_kv_heads=6),
        growth("duplicate", "bert", hidden_size=24, num_heads=6, num_kv_heads=6),
    ],
    ids=str,
)
def test_what_is_said_to_change_the_function_does(case: GrowthCase) -> None:
    assert not case.exact
    assert difference(case, torch.float64) > 1e-4


@pytest.mark.parametrize("operator", ["zero_pad", "duplicate"])
def test_the_norms_eps_must_go_along(operator: str) -> None:
    """Units that hold zero make the mean square smaller, and eps weighs more: little, but not nothing."""
    case = growth(operator, hidden_size=24)
    left = replace(case, target=replace(case.target, norm_eps=case.source.norm_eps))
    assert case.exact
    assert not left.exact
    assert 1e-10 < difference(left, torch.float64) < 1e-4


def test_norms_of_heads_hold_the_eps_where_it_is() -> None:
    """Qwen3 has one eps for the norms of its stream and of its heads, whose width stays: close, but not exact."""
    case = growth("zero_pad", "qwen3", hidden_size=24)
    assert case.target.norm_eps == case.source.norm_eps
    assert not case.exact
    assert 1e-10 < difference(case, torch.float64) < 1e-4
    assert growth("duplicate", "qwen3", hidden_size=32).exact


@every_exact_growth
def test_predicted_gradients_are_autograds(case: GrowthCase) -> None:
    real, predicted = grown_gradients(case), predicted_gradients(case)
    scale = max(np.abs(gradient).max() for gradient in real.values())
    compared = 0
    for rule in case.map():
        known = ~np.isnan(predicted[rule.target]) & (rule.gradient == "exact")
        compared += known.sum()
        # A key's bias has no gradient at all (softmax takes no notice of it): only rounding, next to the model's scale.
        tolerance = 1e-9 * np.abs(real[rule.target]).max() + 1e-12 * scale
        wrong = np.abs(real[rule.target] - predicted[rule.target])[known]
        assert (wrong <= tolerance).all(), f"{rule.target}: off by {wrong.max():.1e}"
    assert compared > 0


def grown_gradients(case: GrowthCase) -> dict[str, np.ndarray]:
    return gradients(case.target, weights(case), case.source)


def predicted_gradients(case: GrowthCase) -> dict[str, np.ndarray]:
    rules = case.map()
    view = Grown(rules, reader(lambda state: source_gradients(case.source)), 0)
    return {rule.target: view.predicted_gradient(rule.target, 0, rule.numel) for rule in rules}


@pytest.mark.parametrize("name", [name for name, shape in SOURCES.items() if not shape.num_experts])
def test_of_whole_copies_every_gradient_is_predicted(name: str) -> None:
    heads = {"num_heads": 2 * SOURCES[name].num_heads, "num_kv_heads": 2 * SOURCES[name].num_kv_heads}
    case = growth("duplicate", name, hidden_size=32, ffn_size=48, **heads)
    # Where the stream is read without a norm, the gradients of what writes it are known in sum alone.
    known = {"exact", "estimated"} if FAMILIES[case.source.family].reads_stream else {"exact"}
    rules, predicted = [rule for rule in case.map() if rule.moments != "none"], predicted_gradients(case)
    assert {rule.gradient for rule in rules} == known
    assert not any(np.isnan(predicted[rule.target]).any() for rule in rules)


def test_estimated_gradients_are_of_the_right_size() -> None:
    """Not exact, and said so: but what an upcycled expert's share of the tokens comes to on average."""
    case = mixture()
    real, predicted = grown_gradients(case), predicted_gradients(case)
    estimated = [rule.target for rule in case.map() if rule.gradient == "estimated"]
    assert estimated
    for name in estimated:
        assert 0.2 < np.linalg.norm(real[name]) / np.linalg.norm(predicted[name]) < 5


@every_exact_growth
def test_the_chain_rule_holds_through_the_growth(case: GrowthCase) -> None:
    """The grown model's gradient, pulled back through the map, is the source's: of every tensor, whatever is
    predicted of it."""
    pulled = {name: np.zeros(len(values)) for name, values in made_up(case.source).items()}
    after = grown_gradients(case)
    for rule in case.map():
        if rule.weights in ("copy", "mapped"):
            parts = np.split(pulled_back(rule, after[rule.target]), len(rule.sources))
            for name, part in zip(rule.sources, parts, strict=True):
                pulled[name] += part
    before = source_gradients(case.source)
    scale = max(np.abs(gradient).max() for gradient in before.values())
    for name, gradient in before.items():
        tolerance = 1e-9 * np.abs(gradient).max() + 1e-12 * scale
        np.testing.assert_allclose(pulled[name], gradient, rtol=0, atol=tolerance, err_msg=name)


def pulled_back(rule: Rule, gradient: np.ndarray) -> np.ndarray:
    """The transpose of the growth, axis by axis, on a flat gradient: flat, of the sources end to end."""
    if not rule.axes:
        return gradient
    matrices = [matrix_of(axis) for axis in rule.axes]
    return reduce(contracted, enumerate(matrices), gradient.reshape(rule.shape)).reshape(-1)


def contracted(tensor: np.ndarray, numbered: tuple[int, np.ndarray]) -> np.ndarray:
    axis, matrix = numbered
    return np.moveaxis(np.tensordot(tensor, matrix, ([axis], [0])), -1, axis)


def matrix_of(axis: AxisMap) -> np.ndarray:
    """What the growth does along an axis as a matrix: (target's size, source's size)."""
    matrix = np.zeros((len(axis.index), axis.source))
    for place, origin in enumerate(axis.index):
        if origin >= 0:
            matrix[place, origin] = axis.values[place]
        elif origin == MEAN:
            matrix[place] = axis.values[place] / axis.source
    return matrix


@every_exact_growth
def test_growing_is_the_linear_map_that_the_axes_say(case: GrowthCase) -> None:
    """Computed a second way, by matrices; what is drawn anew is left out."""
    view = grown(case)
    for rule in case.map():
        if rule.weights == "mapped":
            source = np.concatenate([made_up(case.source)[name] for name in rule.sources]).reshape(rule.source_shape)
            transposed = [(number, matrix_of(axis).T) for number, axis in enumerate(rule.axes)]
            expected = reduce(contracted, transposed, source + rule.offset).reshape(-1) - rule.offset
            found = view.slice(rule.target, "fp32", 0, rule.numel)
            from_source = expected != -rule.offset
            np.testing.assert_allclose(found[from_source], expected[from_source], rtol=1e-12, atol=1e-15)


def test_a_claim_is_made_of_what_grows_only() -> None:
    """Nothing grown: whoever is asked, the function stays."""
    shape = SOURCES["gpt2"]
    for operator in ("stack", "rms", "aki", "duplicate", "num_layers=stack, hidden_size=rms"):
        assert is_exact(shape, shape, operator)
