"""Whether a growth leaves the function as it was, and what the norms' eps must be for that."""

from __future__ import annotations

import math
from dataclasses import replace

from raystage.growth.checks import changed_fields
from raystage.growth.depth import NO_OPTIONS, GrowthOptions, LayerOrigin
from raystage.growth.operators import PART_OF, WIDTHS, layer_origins, operators_of, width_operator
from raystage.growth.width import WIDTH_OPERATORS, Stream
from raystage.models.shape import ModelShape
from raystage.models.table import FAMILIES, family_of

# What grows by itself, whatever the operator: new tokens are the mean of the old, embedded positions begin again.
_BY_ITSELF = ("vocab_size", "context_length")


def stream_of(shape: ModelShape) -> Stream:
    family = FAMILIES[shape.family]
    return Stream(family.norm, family.post_norm, shape.tied_embeddings)


def with_norm_eps(source: ModelShape, target: ModelShape, operator: str) -> ModelShape:
    """The target with the eps of its norms scaled as their mean squares are, where units of the residual stream
    that hold zero make these smaller."""
    chosen = WIDTH_OPERATORS[width_operator(operator, "hidden_size")]
    factor = chosen.variance(source.hidden_size, target.hidden_size, stream_of(source))
    shared = FAMILIES[target.family].norms_heads  # whose variance stays as it is
    return replace(target, norm_eps=source.norm_eps * (1.0 if shared else factor))


def is_exact(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions = NO_OPTIONS) -> bool:
    """Whether the grown model computes the source's function: the same logits for the tokens both know, at the
    positions both have. Of `masked`, at the moment of growth."""
    return all(_is_exact_in(source, target, operator, options, field) for field in changed_fields(source, target)) and (
        layers_stay(source, target, operator, options) or _is_exact_in(source, target, operator, options, "num_layers")
    )


def layers_stay(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions) -> bool:
    """Whether every layer of the target is the source's in its place."""
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
        return WIDTH_OPERATORS[chosen.name].exact(*sizes) and math.isclose(target.norm_eps, source.norm_eps * factor)
    if part in WIDTHS:
        return chosen.name in WIDTH_OPERATORS and WIDTH_OPERATORS[chosen.name].exact_inside
    return chosen.exact
