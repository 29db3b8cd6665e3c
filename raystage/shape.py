"""The shape of a model and, per family, the table of its parameters.

A family is a table that names each parameter's axes. Everything that can be known about a
model without building it comes from here: its parameters' names and shapes, their number, the
FLOPs of a token, which parameters belong to which layer and which write to the residual stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. `head_size * num_heads` need not be `hidden_size`."""

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

    def with_layers(self, num_layers: int) -> ModelShape:
        return replace(self, num_layers=num_layers)

    def axis_size(self, axis: str) -> int:
        return {
            "hidden": self.hidden_size,
            "query": self.num_heads * self.head_size,
            "key_value": self.num_kv_heads * self.head_size,
            "ffn": self.ffn_size,
            "vocab": self.vocab_size,
        }[axis]


@dataclass(frozen=True)
class ParameterSpec:
    """One row of a family's table; `{layer}` in the name stands for the layer's index.

    writes_residual: the last projection of a block; zeroing it makes the block an identity.
    """

    name: str
    axes: tuple[str, ...]
    init: str = "normal"  # or "ones"
    writes_residual: bool = False


@dataclass(frozen=True)
class Family:
    """A model family: what comes before the layers, in every layer, and after them."""

    name: str
    before: tuple[ParameterSpec, ...]
    layer: tuple[ParameterSpec, ...]
    after: tuple[ParameterSpec, ...]
    embedding: str
    head: str
    init_std: float = 0.02


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model of a given shape."""

    name: str
    shape: tuple[int, ...]
    spec: ParameterSpec
    layer: int | None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


_LAYER = "model.layers.{layer}."

LLAMA = Family(
    name="llama",
    before=(ParameterSpec("model.embed_tokens.weight", ("vocab", "hidden")),),
    layer=(
        ParameterSpec(_LAYER + "self_attn.q_proj.weight", ("query", "hidden")),
        ParameterSpec(_LAYER + "self_attn.k_proj.weight", ("key_value", "hidden")),
        ParameterSpec(_LAYER + "self_attn.v_proj.weight", ("key_value", "hidden")),
        ParameterSpec(_LAYER + "self_attn.o_proj.weight", ("hidden", "query"), writes_residual=True),
        ParameterSpec(_LAYER + "mlp.gate_proj.weight", ("ffn", "hidden")),
        ParameterSpec(_LAYER + "mlp.up_proj.weight", ("ffn", "hidden")),
        ParameterSpec(_LAYER + "mlp.down_proj.weight", ("hidden", "ffn"), writes_residual=True),
        ParameterSpec(_LAYER + "input_layernorm.weight", ("hidden",), init="ones"),
        ParameterSpec(_LAYER + "post_attention_layernorm.weight", ("hidden",), init="ones"),
    ),
    after=(
        ParameterSpec("model.norm.weight", ("hidden",), init="ones"),
        ParameterSpec("lm_head.weight", ("vocab", "hidden")),
    ),
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
)

FAMILIES = {family.name: family for family in (LLAMA,)}


def parameters(shape: ModelShape) -> tuple[Parameter, ...]:
    """Every trainable parameter, in the model's own order. A tied head is its embedding: listed once."""
    family = FAMILIES[shape.family]
    rows = [(spec, None) for spec in family.before]
    rows += [(spec, layer) for layer in range(shape.num_layers) for spec in family.layer]
    rows += [(spec, None) for spec in family.after if not (shape.tied_embeddings and spec.name == family.head)]
    return tuple(
        Parameter(
            name=spec.name.format(layer=layer),
            shape=tuple(shape.axis_size(axis) for axis in spec.axes),
            spec=spec,
            layer=layer,
        )
        for spec, layer in rows
    )


def num_params(shape: ModelShape) -> int:
    """The number of trainable parameters."""
    return _count(shape, frozenset())


def num_body_params(shape: ModelShape) -> int:
    """The trainable parameters besides the embedding and the head: the non-embedding parameters of scaling laws."""
    family = FAMILIES[shape.family]
    return _count(shape, frozenset({family.embedding, family.head}))


def flops_per_token(shape: ModelShape) -> int:
    """Training FLOPs of one token, forward and backward.

    `6 * (non-embedding parameters + hidden_size * vocab_size) + 12 * num_layers * width * context_length`
    where width is `num_heads * head_size` (the hidden size unless the shape says otherwise). The
    attention term counts the whole square, not only its causal half. Source: Kaplan et al.
    (2001.08361) with PaLM's attention term (2204.02311, appendix B).
    """
    attention = shape.num_layers * shape.axis_size("query") * shape.context_length
    return 6 * (num_body_params(shape) + shape.hidden_size * shape.vocab_size) + 12 * attention


def _count(shape: ModelShape, skipped: frozenset[str]) -> int:
    """The elements of all parameters but the skipped, from one layer of each: as quick at 3M layers as at 3."""
    one_layer = [p for p in parameters(shape.with_layers(1)) if p.name not in skipped]
    return sum(p.numel * (1 if p.layer is None else shape.num_layers) for p in one_layer)
