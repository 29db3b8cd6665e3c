"""What an operator cannot grow to, and why; and whether a growth keeps the model's function."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import lru_cache

from raystage.frozen import replaced
from raystage.growth.axis_maps import Heads
from raystage.growth.depth import DEPTH_OPERATORS, NO_OPTIONS, GrowthOptions, LayerOrigin, Refusal
from raystage.growth.operators import (
    OPERATORS,
    PART_OF,
    PARTS,
    WIDTHS,
    Operator,
    in_words,
    layer_origins,
    operators_of,
    width_operator,
)
from raystage.growth.own_models import has_other_parts, own_refusal
from raystage.growth.width import WIDTH_OPERATORS, Stream
from raystage.models.families import FAMILIES, family_of
from raystage.models.own import own_model
from raystage.models.shape import ModelShape, heads_problem, table_of
from raystage.models.tables.mixtures import UPCYCLED
from raystage.units import shown

# Fields that have no parameters, but of which every value makes another function of the same weights.
POSITIONS = ("rope_theta", "rope_scaling", "local_rope_theta")
# Fields of the head alone.
_OF_HEADS = ("head", "num_classes")
# Fields of what embeds patches, which does not grow.
_OF_IMAGES = ("image_size", "patch_size", "num_channels")
# Fields of attention, of which every value makes another function, and that no growth changes.
_OF_ATTENTION = ("sliding_window", "query_pre_attn_scalar")
# What cannot be asked for without training, or follows from the growth.
UNCHANGEABLE = (*_OF_HEADS, *_OF_IMAGES, "layer_kinds")


def changed_fields(source: ModelShape, target: ModelShape) -> list[str]:
    """The fields in which two shapes differ and that growth is about.

    Left out are the norms' eps and the kinds of layers, which growth itself sets, rotary positions, heads, which are
    exchanged and do not grow, and the context length where it has no parameters or follows from the size of images.
    """
    return list(_changed_fields(source, target))


# Cached, as are the next ones: the trials of a sweep ask the same of few shapes.
@lru_cache(maxsize=4096)
def _changed_fields(source: ModelShape, target: ModelShape) -> tuple[str, ...]:
    family = family_of(target.family)
    without = {"norm_eps", "layer_kinds", "module", *POSITIONS, *_OF_HEADS}
    is_free = not family.learns_positions or family.reads_images or target.module
    without |= {"context_length"} if is_free else set()
    without |= {"tied_embeddings"} if source.head or target.head else set()
    names = [field.name for field in fields(ModelShape) if field.name not in without]
    changed = tuple(name for name in names if getattr(source, name) != getattr(target, name))
    is_other = not exchanges_head(source, target) and has_other_parts(source, target)
    return (*changed, "module") if is_other else changed


def exchanges_head(source: ModelShape, target: ModelShape) -> bool:
    """Whether the target has another head, also one for another number of classes: only their bodies can be compared,
    and so can the states after each layer, but not what the models say."""
    return any(getattr(source, name) != getattr(target, name) for name in _OF_HEADS)


def changed_positions(source: ModelShape, target: ModelShape) -> list[str]:
    """The fields of rotary positions in which two shapes differ."""
    return [name for name in POSITIONS if getattr(source, name) != getattr(target, name)]


@lru_cache(maxsize=4096)
def refusal(
    source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions = NO_OPTIONS
) -> Refusal | None:
    """Why the operator cannot grow to the target, or does not take an option; None where it can."""
    chosen = operators_of(operator)
    for field in changed_fields(source, target):
        wrong = _field_refusal(source, target, field, operator)
        if wrong:
            return wrong
    for name, value in options.given().items():
        if not any(name in one.takes for one in chosen.values()):
            return name, _not_taken(operator, name, value)
    return (
        _depth_refusal(source, target, chosen.get("num_layers"), options)
        or _kinds_refusal(source, target, operator, options)
        or _heads_refusal(source, target, operator)
        or _experts_refusal(source, target, chosen.get("num_experts"))
        or own_refusal(source, target, operator, options)
    )


def _other_parameters(source: ModelShape, target: ModelShape) -> str:
    """Says that two modules differ in more than depth and widths, with a parameter outside of the layers as example."""
    problem = "found other parameters than the model before has, beside its depth and the sizes in model.widths"
    here, there = ({row.name: row for row in (*one.before, *one.after)}
                   for one in (own_model(source.module), own_model(target.module)))  # fmt: skip
    other = next((name for name in {**there, **here} if here.get(name) != there.get(name)), None)
    if other is None:
        return f"{problem}; expected the same ones"
    layers = "all that a layer has inside of one block, in one list of blocks"
    return f"{problem}, such as {other}; expected the same ones, and {layers}"


def _field_refusal(source: ModelShape, target: ModelShape, field: str, operator: str) -> Refusal | None:
    before, after = getattr(source, field), getattr(target, field)
    part = PART_OF.get(field, field)
    if field == "head_size":
        heads = max(target.num_heads, target.num_heads * after // before)
        problem = f"found heads of {after} after {before}, and heads grow in number, not in size"
        key = "hidden_size" if source.hidden_size != target.hidden_size else field
        return key, f"{problem}; expected head_size: {before}, with for example num_heads: {heads}"
    if field == "module":
        return "options", _other_parameters(source, target)
    if field in _OF_IMAGES:
        return field, f"found {after} after {before}; expected {before}, for what embeds the patches does not grow"
    if field in _OF_ATTENTION:
        return field, f"found {after} after {before}; expected {before}, for a growth keeps what a layer attends to"
    if field == "tied_embeddings":
        return field, f"found {shown(after)} after {shown(before)}; {_whose(operator)} grows {_grown(operator)} only"
    if part in PARTS and part not in operators_of(operator):
        return (
            field,
            f"found {after} after {before}; {_whose(operator)} grows {_grown(operator)} only{_hint(part, operator)}",
        )
    if field not in ("num_layers", "family") and after < before:
        return field, f"found {after} after {before}; expected at least {before}"
    return None


def _whose(operator: str) -> str:
    return operator if "=" not in operator else f"the operator ({operator})"


def _grown(operator: str) -> str:
    return in_words(tuple(operators_of(operator)))


def _hint(part: str, operator: str) -> str:
    """An example with one operator for each part."""
    if "=" in operator:
        return ""
    other = {"num_layers": "stack", "num_experts": "upcycle"}.get(part, "duplicate")
    own = "width" if "hidden_size" in OPERATORS[operator].grows else OPERATORS[operator].grows[0]
    part = "width" if part in WIDTHS and own != "width" else part
    return f"; expected for example operator: {{{own}: {operator}, {part}: {other}}}"


def _not_taken(operator: str, option: str, value: object) -> str:
    takers = " or ".join(other.name for other in OPERATORS.values() if option in other.takes)
    found = shown(list(value) if isinstance(value, tuple) else value)
    return f"found {found}, but {_whose(operator)} takes no {option}; expected operator: {takers}, or no {option}"


def _depth_refusal(
    source: ModelShape, target: ModelShape, chosen: Operator | None, options: GrowthOptions
) -> Refusal | None:
    before, after = source.num_layers, target.num_layers
    if chosen is None:
        return None
    grower = DEPTH_OPERATORS[chosen.name]
    if before < grower.fewest and after > before:
        able = " or ".join(name for name, one in DEPTH_OPERATORS.items() if before >= one.fewest)
        found = f"found {chosen.name!r} after {before} layers, which leave it nothing to copy"
        return "operator", f"{found}; expected {able}"
    return grower.refuse(before, after, options)


def _kinds_refusal(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions) -> Refusal | None:
    """A copy is what its origin is: it attends to as much. `with_layer_kinds` makes targets of which that is true."""
    if family_of(source.family).windows is None:
        return None
    for place, origin in enumerate(layer_origins(source, target, operator, options)):
        if origin.source is not None and target.kinds[place] != source.kinds[origin.source]:
            found = f"found {target.kinds!r}, in which layer {place} is another kind than its origin {origin.source}"
            return "layer_kinds", f"{found}; expected the kinds of {source.kinds!r} to go along"
    return None


def _heads_refusal(source: ModelShape, target: ModelShape, operator: str) -> Refusal | None:
    stay = all(getattr(source, name) == getattr(target, name) for name in ("family", "num_heads", "hidden_size"))
    problem = None if stay else heads_problem(target)
    before, after = heads_of(source), heads_of(target)
    if problem or before == after:
        return problem
    name = width_operator(operator, "num_heads")
    if WIDTH_OPERATORS[name].heads(before, after) is None:
        found = f"found {after.query} query and {after.key_value} key/value heads"
        found = f"{found} after {before.query} and {before.key_value}, which leaves {name} no place for every"
        problem = f"{found} query head beside its own key/value head"
        return "num_kv_heads", f"{problem}; expected as many query heads for each key/value head as before, or more"
    return None


def heads_of(shape: ModelShape) -> Heads:
    return Heads(shape.num_heads, shape.num_kv_heads)


def _experts_refusal(source: ModelShape, target: ModelShape, chosen: Operator | None) -> Refusal | None:
    if (source.family, source.num_experts) == (target.family, target.num_experts):
        return None
    if source.num_experts:
        found = f"found {target.num_experts} after {source.num_experts}"
        return "num_experts", f"{found}; {chosen.name} makes experts of a dense model, and there are some already"
    if not _upcycles(source.family, target.family):
        found = f"found {target.family} after {source.family}"
        return "family", f"{found}; {chosen.name} makes a mixtral of a llama or a mistral, a qwen3_moe of a qwen3"
    if not 1 <= target.experts_per_token <= target.num_experts:
        found = f"found {target.experts_per_token} of {target.num_experts} experts"
        return "experts_per_token", f"{found}; expected 1 to {target.num_experts}"
    return None


def _upcycles(source: str, target: str) -> bool:
    """Whether the experts of one family are made of the dense rows of the other."""
    dense = {row.name for row in FAMILIES[source].layer}
    needed = {name for row in FAMILIES[target].layer if row.name in UPCYCLED for name in UPCYCLED[row.name]}
    others = {row.name for row in FAMILIES[target].layer if not any(axis.units == ("expert",) for axis in row.axes)}
    return bool(needed) and dense == needed | others


# --- whether the function stays ------------------------------------------------------------------


# Parts that grow in the same way with any operator: new tokens are the mean of the old ones, positions repeat.
_BY_ITSELF = ("vocab_size", "context_length")


def stream_of(shape: ModelShape) -> Stream:
    family = table_of(shape)
    return Stream(family.norm, family.reads_stream, shape.ties_head, family.by_whole_factors)


@lru_cache(maxsize=4096)
def with_norm_eps(source: ModelShape, target: ModelShape, operator: str) -> ModelShape:
    """The target with the eps of its norms scaled like their mean squares, which become smaller where units of the
    residual stream hold zero."""
    chosen = WIDTH_OPERATORS[width_operator(operator, "hidden_size")]
    factor = chosen.variance(source.hidden_size, target.hidden_size, stream_of(source))
    shared = FAMILIES[target.family].norms_heads  # their variance does not change
    return replaced(target, norm_eps=source.norm_eps * (1.0 if shared else factor))


def with_layer_kinds(
    source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions = NO_OPTIONS
) -> ModelShape:
    """The target with the kinds of its layers: of copies those of their origins, of new layers the family's own. As it
    is where the operator cannot grow to it."""
    windows = family_of(target.family).windows
    chosen = operators_of(operator).get("num_layers")
    is_lost = chosen is None and source.num_layers != target.num_layers
    if windows is None or is_lost or _depth_refusal(source, target, chosen, options):
        return target
    own = windows.kinds(target.num_layers)
    origins = layer_origins(source, target, operator, options)
    kinds = "".join(own[i] if one.source is None else source.kinds[one.source] for i, one in enumerate(origins))
    return replaced(target, layer_kinds="" if kinds == own else kinds)


def is_exact(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions = NO_OPTIONS) -> bool:
    """Whether the grown model computes the source's function: the same logits for the tokens that both know, at the
    positions that both have. For `masked`, at the moment of growth. Other rotary positions make another function, and
    so does another head."""
    if changed_positions(source, target) or exchanges_head(source, target):
        return False
    return all(_is_exact_in(source, target, operator, options, field) for field in changed_fields(source, target)) and (
        layers_stay(source, target, operator, options) or _is_exact_in(source, target, operator, options, "num_layers")
    )


def layers_stay(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions) -> bool:
    """Whether every layer of the target is the source's layer in the same place."""
    stay = tuple(LayerOrigin(layer) for layer in range(source.num_layers))
    return layer_origins(source, target, operator, options) == stay


def _is_exact_in(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions, field: str) -> bool:
    part = PART_OF.get(field, field)
    if part in _BY_ITSELF:
        return True
    chosen = operators_of(operator)[part]
    if part == "num_layers":
        return chosen.exact and not family_of(source.family).post_norm
    if part == "hidden_size" and chosen.name in WIDTH_OPERATORS:
        sizes = source.hidden_size, target.hidden_size, stream_of(source)
        factor = WIDTH_OPERATORS[chosen.name].variance(*sizes)
        has_eps = math.isclose(target.norm_eps, source.norm_eps * factor) and not (target.module and factor != 1)
        return WIDTH_OPERATORS[chosen.name].exact(*sizes) and has_eps
    if part == "num_heads" and FAMILIES[source.family].norms_queries and not _repeats_evenly(source, target, chosen):
        return False
    if part in WIDTHS:
        return chosen.name in WIDTH_OPERATORS and WIDTH_OPERATORS[chosen.name].exact_inside
    return chosen.exact


def _repeats_evenly(source: ModelShape, target: ModelShape, chosen: Operator) -> bool:
    """Whether every head is copied equally often, so that norms over all of them stay as they are."""
    if chosen.name not in WIDTH_OPERATORS:
        return False
    grown = WIDTH_OPERATORS[chosen.name].heads(heads_of(source), heads_of(target))
    return grown is not None and all(-1 not in one.origin and len(set(one.copies)) == 1 for one in grown)
