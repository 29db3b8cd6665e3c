"""The operators that need training, `masked` and `learned`: their requirements on a stage, and what follows from them.

Nothing here touches a tensor: `growth.masked` and `growth.learned` carry out what is decided here.
"""

from __future__ import annotations

from raystage.growth.axis_maps import FRESH
from raystage.growth.checks import changed_fields, exchanges_head
from raystage.growth.depth import GrowthOptions, LayerOrigin, Refusal
from raystage.growth.operators import OPERATORS, PARTS, each_operator, layer_origins, operators_of
from raystage.growth.rules import GrowthMap, Rule
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, parameters
from raystage.models.table import Family

# The part of a model that has the number of units of a kind.
_PART_OF_UNITS = {"hidden": "hidden_size", "query": "num_heads", "ffn": "ffn_size"}


def is_masked(operator: str) -> bool:
    return OPERATORS["masked"] in each_operator(operator)


def is_learned(operator: str) -> bool:
    return OPERATORS["learned"] in each_operator(operator)


def stage_refusal(
    source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions, tokens: int
) -> Refusal | None:
    """Why a stage of `tokens` tokens cannot grow like this; None where it can. Always None without training."""
    if is_masked(operator):
        return _family_refusal("masked", target) or _ramp_refusal(options, tokens)
    if is_learned(operator):
        return _family_refusal("learned", target) or _learned_refusal(source, target, operator)
    return None


def _family_refusal(name: str, target: ModelShape) -> Refusal | None:
    why = _why_untrained(FAMILIES[target.family])
    if why is None:
        return None
    able = ", ".join(other.name for other in FAMILIES.values() if _why_untrained(other) is None)
    return "operator", f"found {name} for a {target.family}, {why}; {name} grows {able}"


def _why_untrained(family: Family) -> str | None:
    if family.reads_stream:
        return "whose norms come after its blocks"
    if family.has_experts:
        return "which is a mixture of experts"
    if family.stand_ins:
        return "whose first layer lacks a norm"
    return "which is not a transformer" if not family.has_attention else None


def _ramp_refusal(options: GrowthOptions, tokens: int) -> Refusal | None:
    if options.grow_tokens is None:
        return (
            "grow_tokens",
            f"missing; expected the tokens over which masked opens its mask, at most the {tokens} here",
        )
    if options.grow_tokens > tokens:
        return "grow_tokens", f"found {options.grow_tokens}; expected at most the stage's {tokens} tokens"
    return None


def _learned_refusal(source: ModelShape, target: ModelShape, operator: str) -> Refusal | None:
    if exchanges_head(source, target):
        found = "found learned in a stage with another head than the one before"
        return "operator", f"{found}, of which nothing can be learned from the old one; expected another operator"
    others = sorted({one.name for one in each_operator(operator)} - {"learned"})
    if others:
        found = f"found {' and '.join(others)} beside learned"
        return "operator", f"{found}, whose maps are fitted together; expected operator: learned for all that grows"
    if not set(changed_fields(source, target)) & {*PARTS, "num_kv_heads"}:
        return "operator", "found learned in a stage that grows neither depth nor width; expected one that does"
    return None


# --- masked -------------------------------------------------------------------------------------


def mask_value(grow_tokens: int, tokens: float) -> float:
    """How far the mask is open, from 0 to 1, `tokens` after the stage's start: a straight line over `grow_tokens`."""
    return min(1.0, max(0.0, tokens / grow_tokens))


def masked_units(maps: dict, operator: str) -> dict[str, tuple[bool, ...]]:
    """By kind of units ("hidden", "query", "ffn") which units are behind the mask; kinds without any are left out.

    maps: `growth.rules.unit_maps` of the growth.
    """
    chosen = operators_of(operator)
    found = {}
    for unit, part in _PART_OF_UNITS.items():
        new = tuple(index == FRESH for index in maps["in", unit].index)
        if part in chosen and chosen[part].name == "masked" and any(new):
            found[unit] = new
    return found


def masked_layers(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions) -> frozenset[int]:
    """The target's layers that are behind the mask as a whole."""
    chosen = operators_of(operator).get("num_layers")
    if chosen is None or chosen.name != "masked":
        return frozenset()
    origins: tuple[LayerOrigin, ...] = layer_origins(source, target, operator, options)
    return frozenset(layer for layer, origin in enumerate(origins) if origin.source is None)


# --- learned ------------------------------------------------------------------------------------


def fitted_map(target: ModelShape) -> GrowthMap:
    """The growth map of a model whose weights are fitted: every parameter is new, without state."""
    return tuple(Rule(p.name, p.shape, weights="fitted", moments="zeros", init=p.spec.init) for p in parameters(target))


def fit_steps(operator: str, options: GrowthOptions) -> int:
    """The steps of the fit; 0 for other operators. Each costs as much as a step of the target's training.

    options: complete. The maps themselves, matrix products once per step, are not counted: like an optimizer's step
    they are small compared with a batch.
    """
    return options.fit_steps if is_learned(operator) else 0
