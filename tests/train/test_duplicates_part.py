"""Copies must part: a grown model whose copies stay alike has the width of its source, whatever its size says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from growths import GrowthCase, growth
from raystage.growth.apply import Grown, grown_steps
from raystage.growth.axis_maps import AxisMap
from raystage.growth.rules import GrowthMap, Rule
from raystage.models.shape import ModelShape, parameters
from real_models import SEED, Values, built, made_up, padded_batch, reader, whole

STEPS = 20
# Duplicates that train apart differ by some thousandths or more; those that are locked, by rounding.
PARTED, TOGETHER = 1e-5, 1e-9


# --- training -----------------------------------------------------------------------------------


def optimizer_of(network: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(network.parameters(), lr=1e-2)


def train(network: torch.nn.Module, optimizer: torch.optim.AdamW, vocab_size: int, steps: int) -> None:
    """On one batch whose every token is to be followed by some other: enough to give every unit a gradient."""
    tokens, mask = padded_batch(vocab_size)
    wanted = torch.randint(0, vocab_size, tokens.shape, generator=torch.Generator().manual_seed(3))
    for _ in range(steps):
        optimizer.zero_grad()
        logits = network(input_ids=tokens, attention_mask=mask).logits
        torch.nn.functional.cross_entropy(logits[mask.bool()], wanted[mask.bool()]).backward()
        optimizer.step()


def state_of(network: torch.nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Values]:
    """Weights and moments by state, each by parameter, flat; a parameter without gradient has moments of zero."""
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, parameter in network.named_parameters():
        found["fp32"][name] = parameter.detach().flatten().numpy().copy()
        for state in ("exp_avg", "exp_avg_sq"):
            moments = optimizer.state[parameter].get(state, torch.zeros_like(parameter))
            found[state][name] = moments.flatten().numpy().copy()
    return found


@cache
def trained_source(shape: ModelShape) -> dict[str, Values]:
    """A source trained for 5 steps: its weights and moments."""
    network = built(shape, made_up(shape), torch.float64)
    optimizer = optimizer_of(network)
    train(network, optimizer, shape.vocab_size, steps=5)
    return state_of(network, optimizer)


def trained_on(case: GrowthCase, rules: GrowthMap) -> dict[str, np.ndarray]:
    """The weights of the grown model after STEPS more, begun with the grown moments."""
    source = trained_source(case.source)
    view = Grown(rules, reader(lambda state: source[state]), SEED)
    network = built(case.target, whole(rules, view, "fp32"), torch.float64)
    optimizer = optimizer_of(network)
    steps = grown_steps(rules, dict.fromkeys(made_up(case.source), 5))
    for name, parameter in network.named_parameters():
        moments = {
            state: torch.from_numpy(view.slice(name, state, 0, parameter.numel()).astype(np.float64))
            for state in ("exp_avg", "exp_avg_sq")
        }
        optimizer.state[parameter] = {"step": torch.tensor(float(steps[name]))} | {
            state: values.view(parameter.shape) for state, values in moments.items()
        }
    train(network, optimizer, case.source.vocab_size, STEPS)
    return state_of(network, optimizer)["fp32"]


# --- duplicates ---------------------------------------------------------------------------------


def duplicate_distances(case: GrowthCase, rules: GrowthMap, weights: Values) -> Iterator[tuple[str, int, int, float]]:
    """(parameter, unit, duplicate, relative distance) of every two copies of a unit, in all that produces units.

    Left out are rows of embeddings, which stand for tokens and positions, and biases: those of keys have no gradient.
    """
    specs = {parameter.name: parameter.spec for parameter in parameters(case.target)}
    for rule in rules:
        for number, axis in enumerate(rule.axes):
            produces = specs[rule.target].axes[number]
            if produces.role == "out" and not {"vocab", "position"} & {*produces.units} and len(rule.shape) > 1:
                yield from _distances(rule, axis, number, weights)


def _distances(rule: Rule, axis: AxisMap, number: int, weights: Values) -> Iterator[tuple[str, int, int, float]]:
    slices = np.moveaxis(weights[rule.target].reshape(rule.shape), number, 0)
    for one, other in pairs_of(axis):
        distance = np.linalg.norm(slices[one] - slices[other])
        yield rule.target, one, other, float(distance / np.linalg.norm(slices[one]))


def pairs_of(axis: AxisMap) -> list[tuple[int, int]]:
    places: dict[int, list[int]] = defaultdict(list)
    for place, origin in enumerate(axis.index):
        if origin >= 0:
            places[origin].append(place)
    return [(one, other) for copies in places.values() for i, one in enumerate(copies) for other in copies[i + 1 :]]


WIDE = {"hidden_size": 32, "num_heads": 8, "num_kv_heads": 4, "ffn_size": 48}
FILLED = {**WIDE, "num_kv_heads": 8}
DEEP = {**WIDE, "num_layers": 4}
# By operator and policy the growths that claim to make duplicates different. Zero padding makes no copies.
PARTING = [
    *(("duplicate", policy, name, WIDE)
      for name in ("llama", "llama tied", "qwen2", "qwen3", "mixtral") for policy in ("grow", "reset")),
    ("duplicate", "grow", "gpt2", FILLED),
    ("duplicate", "reset", "gpt2", FILLED),
    ("duplicate", "grow", "bert", FILLED),
    ("duplicate", "reset", "bert", FILLED),
    ("duplicate", "grow", "bert untied", FILLED),
    ("duplicate", "reset", "bert untied", FILLED),
    ("duplicate", "grow", "llama", {"hidden_size": 40, "ffn_size": 80}),
    ("duplicate", "grow", "mistral", {"num_heads": 6, "num_kv_heads": 3, "ffn_size": 40}),
    ("rms", "grow", "llama", WIDE),
    ("rms", "grow", "gpt2", FILLED),
    ("rms", "grow", "bert", FILLED),
    ("aki", "grow", "llama", WIDE),
    ("aki", "reset", "gpt2", FILLED),
    # In a silenced layer all units are read by zeros, which tells no copies apart.
    *((f"num_layers={deep}, hidden_size={wide}, ffn_size={wide}, num_heads={wide}", policy, name, DEEP)
      for deep, wide in (("identity", "duplicate"), ("identity", "aki"), ("stack", "duplicate"))
      for name in ("llama", "mixtral") for policy in ("grow", "reset")),
    ("num_layers=identity, hidden_size=rms, ffn_size=rms, num_heads=rms", "grow", "llama", DEEP),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "policy", "name", "changes"), PARTING, ids=str)
def test_duplicates_become_different(operator: str, policy: str, name: str, changes: dict[str, int]) -> None:
    case = growth(operator, name, **changes)
    rules = case.map(policy)
    distances = list(duplicate_distances(case, rules, trained_on(case, rules)))
    assert distances
    together = [found for found in distances if found[-1] < PARTED]
    assert not together, f"{len(together)} of {len(distances)} did not part, the first {together[0]}"


def evened(rule: Rule) -> Rule:
    """The same growth with even shares and all moments copied."""
    return replace(rule, axes=tuple(_evened(axis) for axis in rule.axes))


def _evened(axis: AxisMap) -> AxisMap:
    if axis.is_identity:
        return axis
    share = (axis.source / len(axis.index),) * len(axis.index)
    return replace(axis, value=share if axis.value else (), gradient=share if axis.gradient else (), kept=())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_even_shares_lock_duplicates(name: str) -> None:
    """The lock that the operators avoid is one: so the law above can be broken."""
    case = growth("duplicate", name, ffn_size=48)
    rules = tuple(evened(rule) for rule in case.map())
    distances = [found[-1] for found in duplicate_distances(case, rules, trained_on(case, rules))]
    assert len(distances) >= 24 * 2
    assert max(distances) < TOGETHER
