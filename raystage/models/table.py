"""Model families as tables: the name of each parameter, and what its axes consist of.

Growth, counting and the reading of folders use these rows; no other code knows the name of a parameter. A user's own
family is one more `Family`, given to `models.families.register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from raystage.models.tables.windows import LayerWindows

# Kinds of units: of the residual stream, of all heads' queries end to end, of keys and values, and so on.
TEXT_UNITS = ("hidden", "query", "key_value", "head", "ffn", "vocab", "position", "expert")
# Of classifiers and of images: classes, channels, the side of a patch in pixels, and all numbers of a patch.
UNITS = (*TEXT_UNITS, "class", "channel", "patch", "pixel")


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter.

    role: "out" for units that the parameter produces (the outputs of a projection, a bias, rows and columns of an
    embedding), "scaled out" for those of an embedding that the model multiplies by the square root of the hidden size,
    "in" for units that it reads and sums over, "gain" and "shift" for those of a norm, which act on each
    unit alone, "branch gain" for a norm at the end of a block, whose output is added to the residual stream,
    "statistic" for what a norm has measured of each unit, "each" for an index (experts), "fixed" for an axis that never
    grows. units: the kinds of units, laid end to end in a fused projection. by_head: they alternate head by head
    instead: the queries of a head, its keys, its values (GPT-NeoX). fixed: the size of a fixed axis.
    """

    role: str
    units: tuple[str, ...] = ()
    fixed: int = 0
    by_head: bool = False


def out(*units: str) -> Axis:
    return Axis("out", units)


def reads(*units: str) -> Axis:
    return Axis("in", units)


def fixed(size: int) -> Axis:
    return Axis("fixed", fixed=size)


@dataclass(frozen=True)
class ParameterSpec:
    """One row of a family's table; `{layer}` and `{expert}` in the name stand for their indices.

    init: the initial values: "normal", "ones" or "zeros". writes_residual: the last parameters of a block, a projection
    and its bias or the gains of a norm behind it; with zeros there the block is the identity. normed: all units that it
    produces go through one norm. feeds_head: a norm whose output only the head reads. layers: the layers
    that have the parameter, where not all do. acts_on: "position" for what every position of a sample is multiplied by,
    "patch" for every position but that of the class token, "sample" for one position of each sample. is_buffer: it is
    measured and not trained (the running statistics of a batch norm), so no optimizer knows it. after_first: all layers
    but the first have it. is_bare_in_first: in the first layer it reads the residual stream without a norm.
    """

    name: str
    axes: tuple[Axis, ...]
    init: str = "normal"
    writes_residual: bool = False
    normed: bool = False
    feeds_head: bool = False
    layers: frozenset[int] | None = None
    acts_on: str = "position"
    is_buffer: bool = False
    after_first: bool = False
    is_bare_in_first: bool = False

    @property
    def is_gain(self) -> bool:
        """Whether it is what a norm multiplies by."""
        return any(axis.role in ("gain", "branch gain") for axis in self.axes)

    def is_in(self, layer: int) -> bool:
        return (self.layers is None or layer in self.layers) and not (self.after_first and layer == 0)


@dataclass(frozen=True)
class Head:
    """What a model ends in, in place of its family's own language head. A further head is one more of these.

    suffix: how the names of transformers' classes with such a head end. rows: the parameters behind the body. sets:
    configuration keys beside the family's, each with the field of the shape that it has. before: the parameters before
    the layers, where they are not the family's. output: the part of a model's answer that is compared with what is
    right.
    """

    suffix: str
    rows: tuple[ParameterSpec, ...]
    sets: Mapping[str, str] = field(default_factory=dict)
    before: tuple[ParameterSpec, ...] = ()
    output: str = "logits"


@dataclass(frozen=True)
class Family:
    """A model family: the parameters before the layers, of every layer, and after them.

    untied: parameters that only a model without tied embeddings has, beside the head. optional: rows that some models
    of the family have (biases, poolers, norms of heads), used where a folder has them. embeddings: lookup tables; the
    first is that of tokens. head: the output embedding, which may be tied. ties: for rows of `untied` the parameter
    that they are in a tied model. base: the prefix that a model without a head omits. heads: what its models can end in
    besides, by the name in `ModelShape.head`. head_rows: of a table with such a head, the parameters that it added.

    norm: "rms", "layer" or "batch". post_norm: the output of the norm is itself the residual stream (BERT). pre_norm:
    blocks read the residual stream through a norm (in OLMo 2 they do not). heads_fill_hidden: `num_heads * head_size`
    is the hidden size. heads_divide_hidden: the number of heads divides the hidden size. rotary: positions are rotary
    and not embedded. rotary_share: the part of every head that has them. scales_rotary: whether `rope_scaling` can
    scale them. rope_theta: the base of rotary positions, where none is given. local_rope_theta: that of layers with a
    window; 0 where they have the positions of the others. inner_factor: `ffn_size` over `hidden_size`, where it is not
    given.
    gain_offset: what norms add to their parameters before they multiply by them (1 in Gemma, which stores gains minus
    one). windows: which layers attend to all, where others do not. caps_scores: attention bends its scores by a tanh,
    which no fused kernel of torch does.

    stand_ins: for rows that the first layer does not have the parameter outside of layers that has their part there.
    by_whole_factors: the hidden size grows by whole factors alone without a change of the function. fewest_layers: with
    fewer transformers makes no model.

    objective: what such a model learns with its language head; "" for a family without one. name, fields, constants:
    transformers' name of the family, the configuration key and default of every field of the shape, and further keys of
    a configuration that is made from a shape.

    module: the module with its `build(shape)`, for a network of raystage's own; "" where transformers has the model.
    Such a network's initial weights are those that its modules draw.

    on_disk: the table of the tensors in a folder, where `save_pretrained` writes others than the model has. stored_as:
    the rows on disk that lie end to end in one of the model's rows, expert by expert.
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
    pre_norm: bool = True
    heads_fill_hidden: bool = False
    heads_divide_hidden: bool = False
    rotary: bool = True
    rotary_share: float = 1.0
    scales_rotary: bool = True
    rope_theta: float = 10000.0
    local_rope_theta: float = 0.0
    gain_offset: float = 0.0
    caps_scores: bool = False
    windows: LayerWindows | None = None
    init_std: float = 0.02
    inner_factor: int = 4
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    by_whole_factors: bool = False
    fewest_layers: int = 0
    objective: str = "next token"
    fields: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    module: str = ""
    on_disk: Family | None = None
    stored_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    head_rows: tuple[str, ...] = ()

    def with_head(self, name: str) -> Family:
        """The table of its models with that head; itself for "", and where it has one already.

        Raises ValueError for an unknown name.
        """
        if not name or not self.heads:
            return self
        if name not in self.heads:
            raise ValueError(f"found the head {name!r}; a {self.name} can have {', '.join(self.heads)}")
        head = self.heads[name]
        names = tuple(row.name for row in head.rows)
        return replace(
            self,
            before=head.before or self.before,
            after=(*self._of_body(self.after), *head.rows),
            optional=tuple(row for row in self.optional if row.name not in names),
            head="", untied=(), ties={}, heads={}, head_rows=names,
            on_disk=self.on_disk and self.on_disk.with_head(name),
        )  # fmt: skip

    def _of_body(self, rows: tuple[ParameterSpec, ...]) -> tuple[ParameterSpec, ...]:
        return tuple(row for row in rows if row.name.startswith(self.base) and row.name != self.head)

    @property
    def not_body(self) -> frozenset[str]:
        """The embeddings and the head, which scaling laws do not count."""
        return frozenset({*self.embeddings, self.head, *self.head_rows})

    @property
    def reads_images(self) -> bool:
        return "image_size" in self.fields

    @property
    def has_attention(self) -> bool:
        return "num_heads" in self.fields

    @property
    def reads_stream(self) -> bool:
        """Whether blocks read the residual stream itself, without a norm before them."""
        return self.post_norm or not self.pre_norm

    @property
    def scales_embeddings(self) -> bool:
        """Whether the model multiplies its embeddings by the square root of the hidden size."""
        return any(axis.role == "scaled out" for row in self.before for axis in row.axes)

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys have norms of their own, which share the eps of the others."""
        return self._has_gain_of("head") or self.norms_queries

    @property
    def norms_queries(self) -> bool:
        """Whether the queries of all heads go through one norm together, and so do the keys."""
        return self._has_gain_of("query")

    def _has_gain_of(self, unit: str) -> bool:
        return any(axis == Axis("gain", (unit,)) for row in self.layer for axis in row.axes)

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return any(axis.units == ("expert",) for row in self.layer for axis in row.axes)

    @property
    def default_norm_eps(self) -> float:
        return float(self.fields["norm_eps"][1])

    @property
    def learns_positions(self) -> bool:
        """Whether positions are embedded, so that the context is part of its shape."""
        rows = (*self.before, *self.layer, *self.after)
        return any("position" in axis.units for row in rows for axis in row.axes)
