"""The shape of a model, and what follows from it and its family's table without building it:
its parameters' names and shapes, their number, the FLOPs of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from raystage.models.families import FAMILIES
from raystage.models.table import Axis, Family, ParameterSpec


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a transformer. `head_size * num_heads` need not be `hidden_size` where the family allows it.

    norm_eps: what the norms add to the variance; growing the hidden size by zeros scales it, to stay exact.
    num_experts, experts_per_token: 0 in a dense model. rope_theta: the base of rotary positions, where there are any.
    rope_scaling: how these are scaled, as JSON (raystage.models.rope); "" where they are not.
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool = False
    norm_eps: float = 1e-6
    num_experts: int = 0
    experts_per_token: int = 0
    rope_theta: float = 10000.0
    rope_scaling: str = ""

    def with_layers(self, num_layers: int) -> ModelShape:
        return replace(self, num_layers=num_layers)

    def facts(self) -> dict[str, object]:
        """Its fields, as keys and manifests hold them; what versions added is left out where it is not used."""
        return {name: value for name, value in vars(self).items() if (name, value) != ("rope_scaling", "")}

    def units(self, name: str) -> int:
        """How many units of a kind the model has: what an axis of a parameter is made of."""
        return {
            "hidden": self.hidden_size,
            "query": self.num_heads * self.head_size,
            "key_value": self.num_kv_heads * self.head_size,
            "head": self.head_size,
            "ffn": self.ffn_size,
            "vocab": self.vocab_size,
            "position": self.context_length,
            "expert": self.num_experts,
        }[name]

    def axis_size(self, axis: Axis) -> int:
        return axis.fixed or sum(self.units(name) for name in axis.units)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model of a given shape."""

    name: str
    shape: tuple[int, ...]
    spec: ParameterSpec
    layer: int | None
    expert: int | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def parameters(shape: ModelShape, family: Family | None = None) -> tuple[Parameter, ...]:
    """Every trainable parameter, in the model's own order. A tied head is its embedding: listed once.

    family: the table to read, where it is not the registered one of the shape's family.
    """
    family = family or FAMILIES[shape.family]
    rows = [(spec, None) for spec in family.before]
    rows += [(spec, layer) for layer in range(shape.num_layers) for spec in family.layer if spec.is_in(layer)]
    left_out = {family.head, *family.untied} if shape.tied_embeddings else set()
    rows += [(spec, None) for spec in family.after if spec.name not in left_out]
    return tuple(
        Parameter(
            name=spec.name.format(layer=layer, expert=expert),
            shape=tuple(shape.axis_size(axis) for axis in spec.axes),
            spec=spec,
            layer=layer,
            expert=expert,
        )
        for spec, layer in rows
        for expert in (range(shape.num_experts) if "{expert}" in spec.name else (None,))
    )


def heads_problem(shape: ModelShape) -> tuple[str, str] | None:
    """The field and what is wrong with it, where the heads of a shape do not fit together or its family; else None."""
    family = FAMILIES[shape.family]
    if shape.num_heads % shape.num_kv_heads:
        return "num_kv_heads", f"found {shape.num_kv_heads}; expected a divisor of num_heads ({shape.num_heads})"
    if family.heads_fill_hidden and shape.num_kv_heads != shape.num_heads:
        found = f"found {shape.num_kv_heads} for {shape.num_heads} heads"
        return "num_kv_heads", f"{found}; expected as many, since a {family.name} has no grouped queries"
    if family.heads_fill_hidden and shape.num_heads * shape.head_size != shape.hidden_size:
        found = f"found {shape.num_heads} heads of {shape.head_size} for a hidden size of {shape.hidden_size}"
        expected = f"num_heads: {shape.hidden_size // shape.head_size}"
        return "num_heads", f"{found}; expected {expected}, since a {family.name}'s heads fill the hidden size"
    if family.heads_divide_hidden and shape.hidden_size % shape.num_heads:
        found = f"found {shape.num_heads} heads for a hidden size of {shape.hidden_size}"
        return "num_heads", f"{found}; expected a divisor of it, as transformers asks of a {family.name}"
    return None


def num_params(shape: ModelShape) -> int:
    """The number of trainable parameters."""
    return _count(shape, frozenset())


def num_body_params(shape: ModelShape) -> int:
    """The trainable parameters besides embeddings and head: the non-embedding parameters of scaling laws."""
    return _count(shape, FAMILIES[shape.family].not_body)


# Kept, since the plan of a large sweep asks ten thousand times; a family's table never changes under its name.
@lru_cache(maxsize=4096)
def flops_per_token(shape: ModelShape) -> int:
    """Training FLOPs of one token, forward and backward.

    `6 * (non-embedding parameters + hidden_size * vocab_size) + 12 * num_layers * width * context_length`
    where width is `num_heads * head_size` (the hidden size unless the shape says otherwise). The
    attention term counts the whole square, not only its causal half. Of a mixture of experts, those count
    that a token sees. Source: Kaplan et al. (2001.08361) with PaLM's attention term (2204.02311, appendix B).
    It is torch's count of matrix products in a forward and backward pass, plus six for every gain and bias: under
    1 % from a hidden size of 128 on. Fused attention that computes its scores again in the backward pass does
    14 instead of 12 per score, and activation checkpointing another forward pass; neither is useful work, and
    neither counts here.
    """
    attention = shape.num_layers * shape.units("query") * shape.context_length
    active = replace(shape, num_experts=shape.experts_per_token)
    router = shape.num_layers * shape.hidden_size * (shape.num_experts - shape.experts_per_token)
    return 6 * (num_body_params(active) + router + shape.hidden_size * shape.vocab_size) + 12 * attention


def _count(shape: ModelShape, skipped: frozenset[str]) -> int:
    """The elements of all parameters but the skipped, from one layer of each: as quick at 3M layers as at 3."""
    one_layer = [p for p in parameters(shape.with_layers(1)) if p.name not in skipped]
    return sum(p.numel * (1 if p.layer is None else shape.num_layers) for p in one_layer)


def token_flops(shape: ModelShape, context_length: int) -> int:
    """Training FLOPs of one token in a context of this length."""
    return flops_per_token(replace(shape, context_length=context_length))
