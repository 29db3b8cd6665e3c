"""A stage with another head: the body is grown as ever, the old head is dropped, the new one starts anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from growths import SOURCES, GrowthCase
from raystage.errors import InputError
from raystage.growth.apply import is_new
from raystage.growth.checks import changed_fields, exchanges_head, is_exact, refusal
from raystage.growth.depth import NO_OPTIONS
from raystage.growth.explain import what_grows
from raystage.growth.request import GrowthRequest, plan_growth
from raystage.growth.rules import Rule, growth_map
from raystage.growth.trained import stage_refusal
from raystage.models.shape import ModelShape, parameters, table_of
from real_models import built, images_of, made_up, padded_batch, weights

WIDE = {"hidden_size": 32, "num_heads": 8, "num_kv_heads": 8, "ffn_size": 48}
GROUPED = {**WIDE, "num_kv_heads": 4}
DEEP_AND_WIDE = "num_layers=identity, hidden_size=duplicate, ffn_size=duplicate, num_heads=duplicate"


@dataclass(frozen=True)
class Exchange:
    source: ModelShape
    head: str
    num_classes: int = 0

    @property
    def target(self) -> ModelShape:
        return replace(self.source, head=self.head, num_classes=self.num_classes)

    def wider(self) -> ModelShape:
        return replace(self.target, **(WIDE if self.source.num_kv_heads == self.source.num_heads else GROUPED))


EXCHANGES = {
    "llama to classes": Exchange(SOURCES["llama"], "classes", 5),
    "tied llama to classes": Exchange(SOURCES["llama tied"], "classes", 5),
    "tied gpt2 to classes": Exchange(SOURCES["gpt2"], "classes", 5),
    "bert to classes": Exchange(SOURCES["bert"], "classes", 5),
    "classes to tied bert": Exchange(SOURCES["bert classes"], ""),
    "classes to llama": Exchange(SOURCES["llama classes"], ""),
    "mixtral to classes": Exchange(SOURCES["mixtral"], "classes", 5),
    "vit's pixels to classes": Exchange(SOURCES["vit pixels"], "classes", 5),
    "vit's classes to pixels": Exchange(SOURCES["vit"], "pixels"),
    "other classes": Exchange(SOURCES["llama classes"], "classes", 3),
    "other classes of bert": Exchange(SOURCES["bert classes"], "classes", 3),
}
every_exchange = pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)


def names(shape: ModelShape) -> set[str]:
    return {one.name for one in parameters(shape)}


def of_classes(shape: ModelShape) -> set[str]:
    """The parameters whose size is the number of classes."""
    return {one.name for one in parameters(shape) if any("class" in axis.units for axis in one.spec.axes)}


def fresh(exchange: Exchange, target: ModelShape) -> set[str]:
    """What the target has alone, and what only other classes had."""
    return (names(target) - names(exchange.source.with_layers(target.num_layers))) | of_classes(target)


def grown(exchange: Exchange) -> list[tuple[ModelShape, str]]:
    """The target at the source's size, deeper and wider, each with an operator that can make it so."""
    wide = exchange.wider()
    return [
        (exchange.target, "stack"),
        (exchange.target.with_layers(4), "stack"),
        (wide, "duplicate"),
        (wide.with_layers(3), DEEP_AND_WIDE),
        (wide, "aki"),
    ]


@every_exchange
def test_a_head_is_not_grown_but_exchanged(exchange: Exchange) -> None:
    assert exchanges_head(exchange.source, exchange.target)
    assert changed_fields(exchange.source, exchange.target) == []
    for target, operator in grown(exchange):
        assert refusal(exchange.source, target, operator) is None
        assert not is_exact(exchange.source, target, operator)


@every_exchange
def test_the_new_head_is_drawn_and_has_no_past(exchange: Exchange) -> None:
    for target, operator in grown(exchange):
        rules = {rule.target: rule for rule in growth_map(exchange.source, target, operator, "grow")}
        init = {one.name: one.spec.init for one in parameters(target)}
        new = fresh(exchange, target)
        assert new or not target.head  # a tied head is the embedding
        assert {name for name, rule in rules.items() if not rule.sources} == new
        for name in new:
            assert (rules[name].weights, rules[name].moments) == (init[name], "zeros")
            assert is_new(rules[name], 0, rules[name].numel).all()


@every_exchange
def test_the_old_head_is_dropped_and_nothing_else(exchange: Exchange) -> None:
    for target, operator in grown(exchange):
        used = {name for rule in growth_map(exchange.source, target, operator, "grow") for name in rule.sources}
        dropped = (names(exchange.source) - names(exchange.target)) | of_classes(exchange.source)
        assert names(exchange.source) - used == dropped


@every_exchange
def test_the_body_is_grown_as_with_the_old_head(exchange: Exchange) -> None:
    """Rule for rule; but no gradient is predicted, for another head has another loss."""
    untied = replace(exchange.source, tied_embeddings=False)
    for target, operator in grown(exchange):
        same_head = replace(target, head=untied.head, num_classes=untied.num_classes, tied_embeddings=False)
        as_ever = {rule.target: rule for rule in growth_map(untied, same_head, operator, "grow")}
        for rule in growth_map(exchange.source, target, operator, "grow"):
            assert rule.gradient == "none"
            if rule.sources:
                assert rule == replace(as_ever[rule.target], gradient="none")


def states(shape: ModelShape, values: dict[str, np.ndarray], source: ModelShape) -> list[torch.Tensor]:
    """What the layers give for a fixed batch that both models can read: of (samples, length, hidden) each."""
    network, found = built(shape, values, torch.float64), []
    first = table_of(shape).layer[0].name.partition("{layer}")[0].rstrip(".")
    for layer in network.get_submodule(first):
        layer.register_forward_hook(lambda _, inputs, output: found.append(output))
    with torch.no_grad():
        if source.image_size:
            network(pixel_values=images_of(source)["pixel_values"])
        else:
            tokens, mask = padded_batch(source.vocab_size)
            network(input_ids=tokens, attention_mask=mask)
    return [one[0] if isinstance(one, tuple) else one for one in found]


@pytest.mark.parametrize("name", [name for name, one in EXCHANGES.items() if one.source.family not in ("mixtral",)])
def test_an_exact_operator_keeps_what_the_body_computes(name: str) -> None:
    """After every layer the old units hold what they held, and their copies the same."""
    exchange = EXCHANGES[name]
    case = GrowthCase("duplicate", name, exchange.source, exchange.wider())
    before = states(case.source, dict(made_up(case.source)), case.source)
    after = states(case.target, weights(case), case.source)
    assert len(before) == len(after) == case.source.num_layers
    for one, other in zip(before, after, strict=True):
        width = case.source.hidden_size
        torch.testing.assert_close(other[..., :width], one, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other[..., width:], one, rtol=1e-9, atol=1e-9)


def test_the_pooler_stays_where_only_the_classes_are_others() -> None:
    rules = growth_map(SOURCES["bert classes"], replace(SOURCES["bert classes"], num_classes=3), "stack", "grow")
    kept: dict[str, Rule] = {rule.target: rule for rule in rules if rule.sources}
    assert kept["bert.pooler.dense.weight"].moments == "copy"
    assert "classifier.weight" not in kept


def test_what_grows_names_the_new_head() -> None:
    source = SOURCES["vit pixels"]
    target = replace(source.with_layers(4), head="classes", num_classes=10)
    assert what_grows(source, target) == "2 -> 4 layers, a new head for 10 classes"
    assert what_grows(SOURCES["bert classes"], SOURCES["bert"]) == "2 -> 2 layers, a new head for tokens"


def test_nothing_can_be_learned_of_another_head() -> None:
    source = SOURCES["llama"]
    target = replace(source.with_layers(4), head="classes", num_classes=5)
    field, problem = stage_refusal(source, target, "learned", NO_OPTIONS, 1000)
    assert field == "operator"
    assert problem.startswith("found learned in a stage with another head than the one before")
    assert (
        stage_refusal(source, replace(target, num_layers=4, head="", num_classes=0), "learned", NO_OPTIONS, 9) is None
    )


@pytest.mark.parametrize(("field", "value"), [("image_size", 16), ("patch_size", 2), ("num_channels", 3)])
def test_patches_do_not_grow(field: str, value: int) -> None:
    source = SOURCES["vit"]
    found = refusal(source, replace(source, **{field: value, "context_length": 17}), "stack")
    was = getattr(source, field)
    assert found == (
        field, f"found {value} after {was}; expected {was}, for what embeds the patches does not grow"
    )  # fmt: skip


def test_a_folder_keeps_its_head() -> None:
    with pytest.raises(InputError, match=r"^--set head: unknown key"):
        plan_growth(SOURCES["llama"], GrowthRequest(("head=classes",), "stack"))
