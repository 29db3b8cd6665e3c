"""New elements of an old tensor are stepped as if they were a parameter of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raystage.config.training import Optimizer
from raystage.growth.axis_maps import ZERO, AxisMap, unchanged
from raystage.growth.rules import GrowthMap, Rule
from raystage.train.optimizer import NewElements, build, parameter_groups, wholly_new
from raystage.train.partitions import Partition, moments_of

HEAD_START = 50
# Three old rows, then two new ones.
RULE = Rule(
    "weight", (5, 4), weights="mapped", moments="copy", sources=("weight",), source_shape=(3, 4),
    axes=(AxisMap("", 3, (0, 1, 2, ZERO, ZERO)), unchanged(4)),
)  # fmt: skip
NEW = slice(12, 20)
HEAD_STARTS = ((0, 0, 0, HEAD_START, HEAD_START), (0, 0, 0, 0))

# eps as large as that would show at once.
OPTIMIZERS = {
    "adamw": Optimizer(name="adamw", betas=(0.9, 0.999), eps=1e-2, weight_decay=0.1),
    "adam": Optimizer(name="adam", betas=(0.8, 0.95), eps=1e-2, weight_decay=0.1),
    "sgd": Optimizer(name="sgd", momentum=0.9, weight_decay=0.1),
    "sgd without momentum": Optimizer(name="sgd", momentum=0.0, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)


def boost_at(step: int) -> float:
    return min(0.3 * (step + 1), 1.0)


def gradient(step: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(step).normal(size=20))


class Whole:
    """Old and new elements in one flat tensor, with moments and a step count as growth leaves them."""

    def __init__(self, options: Optimizer, step: int = HEAD_START) -> None:
        random = np.random.default_rng(-1 + 2**32)
        self.weight = torch.from_numpy(random.normal(size=20))
        self.optimizer = build([{"params": [self.weight], "weight_decay": 0.1}], options)
        self.state = self.optimizer.state[self.weight]
        self.state["step"] = torch.tensor(float(step))
        for name in options.moments:
            self.state[name] = torch.from_numpy(random.normal(size=20) ** 2)
            self.state[name][NEW] = 0

    def partitions(self) -> list[Partition]:
        """Cut amid the new elements, as ZeRO may cut."""
        return [self._partition(0, 15), self._partition(15, 20)]

    def _partition(self, start: int, stop: int) -> Partition:
        tensors = {name: self.state[name][start:stop] for name in moments_of(self.optimizer)}
        tensors["fp32"] = self.weight[start:stop]
        return Partition("weight", start, stop, tensors, (0, stop - start), self.weight)

    def new_elements(self, boosted: GrowthMap = (RULE,)) -> NewElements:
        return NewElements(self.optimizer, self.partitions(), {"weight": HEAD_STARTS}, boosted)

    def step(self, number: int) -> None:
        self.weight.grad = gradient(number)
        self.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        self.optimizer.step()


def separately(options: Optimizer, steps: int) -> torch.Tensor:
    """The same with the new elements as a parameter of their own, which has a count and a rate of its own."""
    whole = Whole(options)
    parts = [whole.weight[: NEW.start].clone(), whole.weight[NEW].clone()]
    optimizer = build([{"params": [part], "weight_decay": 0.1} for part in parts], options)
    state = optimizer.state[parts[0]]
    state |= {name: value[: NEW.start].clone() for name, value in whole.state.items() if name != "step"}
    state["step"] = torch.tensor(float(HEAD_START))
    for number in range(steps):
        parts[0].grad, parts[1].grad = gradient(number)[: NEW.start], gradient(number)[NEW]
        for group, boost in zip(optimizer.param_groups, (1.0, boost_at(number)), strict=True):
            group["lr"] = boost * 1e-2 / (1 + number)
        optimizer.step()
    return torch.cat(parts)


@every_optimizer
def test_new_elements_step_as_a_parameter_of_their_own(options: Optimizer) -> None:
    whole = Whole(options)
    new = whole.new_elements()
    for number in range(20):
        new.set_rate(boost_at(number), lasting=False)
        whole.step(number)
    torch.testing.assert_close(whole.weight, separately(options, 20), rtol=1e-12, atol=1e-14)
    assert whole.state["step"] == HEAD_START + 20


def test_with_the_tensors_own_count_the_first_update_would_be_three_times_too_large() -> None:
    """What all this is for: 0.1 g / sqrt(0.001 g^2), where g / sqrt(g^2) is right."""
    options = Optimizer(name="adam", betas=(0.9, 0.999), eps=1e-12, weight_decay=0.0)
    updates = []
    for counted_apart in (False, True):
        whole = Whole(options, step=100_000)
        before = whole.weight.clone()
        if counted_apart:
            starts = {"weight": ((0, 0, 0, 100_000, 100_000), (0,) * 4)}
            NewElements(whole.optimizer, whole.partitions(), starts)
        whole.step(0)
        updates.append((before - whole.weight)[NEW])
    torch.testing.assert_close(updates[0] / updates[1], torch.full_like(updates[0], 10**0.5), rtol=1e-3, atol=0)


@every_optimizer
def test_going_on_in_the_middle_gives_the_same_bits(options: Optimizer) -> None:
    calm, stopped = Whole(options), Whole(options)
    for whole, stops in ((calm, ()), (stopped, (3, 4, 11))):
        new = whole.new_elements()
        for number in range(15):
            if number in stops:
                new.forget()
                new = whole.new_elements()
            new.set_rate(boost_at(number), lasting=number >= 5)
            whole.step(number)
    assert torch.equal(calm.weight, stopped.weight)


@pytest.mark.parametrize(
    ("options", "settled"),
    [
        (OPTIMIZERS["adam"], 134),  # the first t with 0.95^t (1 - 0.95^50) / (1 - 0.95^t) < 1e-3
        (OPTIMIZERS["sgd"], 1),
    ],
    ids=["adam", "sgd"],
)
def test_they_are_new_until_it_makes_no_difference(options: Optimizer, settled: int) -> None:
    whole = Whole(options)
    new, news = whole.new_elements(boosted=()), []
    for number in range(200):
        new.set_rate(1.0, lasting=True)
        news.append(new.count)
        whole.step(number)
    assert news == [8] * (settled - 1) + [0] * (200 - settled + 1)


def test_while_their_rate_is_another_they_stay_new() -> None:
    whole = Whole(OPTIMIZERS["sgd"])
    new = whole.new_elements()
    new.set_rate(1.3, lasting=False)
    assert new.count == 8
    new.set_rate(1.0, lasting=True)
    assert new.count == 0


@every_optimizer
def test_the_moments_that_a_schedule_names_are_the_ones_that_torch_keeps(options: Optimizer) -> None:
    weight = torch.ones(3, requires_grad=True)
    made = build([{"params": [weight]}], options)
    weight.sum().backward()
    for _ in range(2):
        made.step()
    assert moments_of(made) == options.moments
    assert set(made.state[weight]) - {"step"} == set(options.moments)
    assert made.state[weight]["step"] == 2


def test_groups_part_by_decay_by_steps_and_by_what_is_new() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    steps = {"0.weight": 7, "0.bias": 7, "1.weight": 0, "1.bias": 7}
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def groups(apart: frozenset[str]) -> list[tuple]:
        found = parameter_groups(model, 0.1, steps, apart)
        return [([names[id(one)] for one in g["params"]], g["weight_decay"], g["is_new"]) for g in found]

    assert groups(frozenset()) == [
        (["0.bias", "1.bias"], 0.0, False),
        (["1.weight"], 0.1, False),
        (["0.weight"], 0.1, False),
    ]
    assert groups(frozenset({"1.weight", "1.bias"})) == [
        (["0.bias"], 0.0, False),
        (["1.bias"], 0.0, True),
        (["1.weight"], 0.1, True),
        (["0.weight"], 0.1, False),
    ]


def test_a_parameter_with_old_elements_is_not_wholly_new() -> None:
    fresh = Rule("fresh", (5, 4), weights="normal", moments="zeros")
    assert wholly_new((RULE, fresh)) == {"fresh"}
