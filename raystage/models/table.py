"""Model families as tables: each parameter's name and what its axes are made of.

Growth, counting and the reading of folders all go by these rows; nothing else in raystage knows the name
of a parameter. A family of your own is one more `Family`, given to `register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What can be made of units: what the residual stream holds, a head's queries, keys and values end to end, and so on.
UNITS = ("hidden", "query", "key_value", "head", "ffn", "vocab", "position", "expert")


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter.

    role: "out" for units that the parameter produces (a projection's outputs, a bias, an embedding's rows and
    columns), "in" for units that it reads and sums over, "gain" and "shift" for a norm's, which act on each unit
    alone, "each" for what is only counted off (experts), "fixed" for what never grows.
    units: the kinds of units, laid end to end where a projection is fused. fixed: the size of a fixed axis.
    """

    role: str
    units: tuple[str, ...] = ()
    fixed: int = 0


def out(*units: str) -> Axis:
    return Axis("out", units)


def reads(*units: str) -> Axis:
    return Axis("in", units)


def fixed(size: int) -> Axis:
    return Axis("fixed", fixed=size)


@dataclass(frozen=True)
class ParameterSpec:
    """One row of a family's table; `{layer}` and `{expert}` in the name stand for their indices.

    init: what it starts as, "normal", "ones" or "zeros". writes_residual: the last projection of a block, bias
    included; zeroing it makes the block an identity. feeds_head: a norm whose output goes to the head alone. layers:
    the layers that have it, where not all do.
    """

    name: str
    axes: tuple[Axis, ...]
    init: str = "normal"
    writes_residual: bool = False
    feeds_head: bool = False
    layers: frozenset[int] | None = None

    def is_in(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers


@dataclass(frozen=True)
class Family:
    """A model family: what comes before the layers, in every layer, and after them.

    untied: what only a model without tied embeddings has besides the head. optional: rows that some models of the
    family have (biases, poolers, norms of heads), taken up where a folder has them.
    embeddings: looked up, not multiplied; the first is that of tokens. head: the output embedding, which may be tied.
    ties: of `untied` rows what they are in a tied model.
    base: the prefix that a model without a head leaves out.
    norm: "rms" or "layer". post_norm: the norm's output is itself the residual stream (BERT).
    heads_fill_hidden: `num_heads * head_size` is the hidden size; heads_divide_hidden: the number of heads must at
    least divide it, head_size or not. rotary: positions are turned in, not embedded.
    objective: what such a model learns to tell. name, fields, constants: how `transformers` names the family, its
    configuration's key and default for every field of the shape, and what a configuration made from a shape says
    besides.
    on_disk: the table of the tensors in a folder, where `save_pretrained` writes others than the model has; stored_as:
    the rows that then lie end to end in one of the model's, expert by expert.
    """

    name: str
    before: tuple[ParameterSpec, ...]
    layer: tuple[ParameterSpec, ...]
    after: tuple[ParameterSpec, ...]
    embeddings: tuple[str, ...]
    head: str
    untied: tuple[str, ...] = ()
    ties: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[ParameterSpec, ...] = ()
    base: str = ""
    norm: str = "rms"
    post_norm: bool = False
    heads_fill_hidden: bool = False
    heads_divide_hidden: bool = False
    rotary: bool = True
    init_std: float = 0.02
    objective: str = "next token"
    fields: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    on_disk: Family | None = None
    stored_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def not_body(self) -> frozenset[str]:
        """What scaling laws leave out: the embeddings and the head."""
        return frozenset({*self.embeddings, self.head})

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys go through norms of their own, which share the others' eps."""
        return any(axis.units == ("head",) for row in self.layer for axis in row.axes)

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return any(axis.units == ("expert",) for row in self.layer for axis in row.axes)

    @property
    def default_norm_eps(self) -> float:
        return float(self.fields["norm_eps"][1])
