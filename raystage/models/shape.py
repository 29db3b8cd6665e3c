"""The shape of a model, and what follows from it and its family's table without building the model: the names and
shapes of its parameters, their number, the FLOPs of a token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from raystage.models.families import FAMILIES
from raystage.models.own import own_model, own_table
from raystage.models.table import Axis, Family, ParameterSpec

# Fields of heads, images and windows with the values that say: neither.
_UNUSED = {"module": "", "head": "", "num_classes": 0, "image_size": 0, "patch_size": 0, "num_channels": 0,
           "sliding_window": 0, "layer_kinds": "", "query_pre_attn_scalar": 0, "local_rope_theta": 0.0}  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model. `head_size * num_heads` need not be `hidden_size` where the family allows it; all three sizes
    of heads are 0 in a network without attention.

    norm_eps: added to the variance in norms; growing the hidden size by zeros scales it, to stay exact. num_experts,
    experts_per_token: 0 in a dense model. rope_theta: the base of rotary positions. rope_scaling: their scaling as JSON
    (`models.rope`); "" without one.

    head: what the model ends in, one of `Family.heads`; "" for its family's own language head. num_classes: of a head
    for classes. image_size, patch_size: the sides of an image and of a patch, in pixels; num_channels: numbers of a
    pixel. A model of images has no vocabulary, and a context of its positions (`image_positions`).

    sliding_window: of a family with windows how many tokens a layer with a window attends to: the token itself and
    those before it; of an encoder half as many on either side. layer_kinds: "f" for each layer that attends to all, "s"
    for each with a window, where they are not as `Family.windows` has them; else "". query_pre_attn_scalar: scores of
    queries and keys are divided by its square root, in families that have it; in others by that of `head_size`.
    local_rope_theta: the base of the rotary positions in layers with a window, where they have one of their own;
    `rope_scaling` is for the other layers then.

    module: of a model without a table, what was found in it (`models.own`); "" for all others.
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
    head: str = ""
    num_classes: int = 0
    image_size: int = 0
    patch_size: int = 0
    num_channels: int = 0
    module: str = ""
    sliding_window: int = 0
    layer_kinds: str = ""
    query_pre_attn_scalar: int = 0
    local_rope_theta: float = 0.0

    def with_layers(self, num_layers: int) -> ModelShape:
        """With so many layers, of the family's own kinds."""
        return self if num_layers == self.num_layers else replace(self, num_layers=num_layers, layer_kinds="")

    def facts(self) -> dict[str, object]:
        """Its fields for keys and manifests. Fields that were added later are left out where they are not used."""
        return {name: value for name, value in self.to_json().items() if (name, value) != ("rope_scaling", "")}

    def to_json(self) -> dict[str, object]:
        """Its fields; those of heads, images and windows where it uses them. Of a user's module not where its code
        lies: what is written can be read by others, and must not make raystage run anything there."""
        found = {name: value for name, value in vars(self).items() if name not in _UNUSED or value != _UNUSED[name]}
        return {**found, "module": own_model(self.module).facts()} if self.module else found

    @property
    def kinds(self) -> str:
        """By layer: "f" for one that attends to all, "s" for one with a window."""
        windows = FAMILIES[self.family].windows
        own = windows.kinds(self.num_layers) if windows else "f" * self.num_layers
        return self.layer_kinds or own

    @property
    def ties_head(self) -> bool:
        """Whether the head is the embedding. Only a language head can be."""
        return self.tied_embeddings and not self.head

    def units(self, name: str) -> int:
        """The number of units of a kind: what an axis of a parameter consists of."""
        return {
            "hidden": self.hidden_size,
            "query": self.num_heads * self.head_size,
            "key_value": self.num_kv_heads * self.head_size,
            "head": self.head_size,
            "ffn": self.ffn_size,
            "vocab": self.vocab_size,
            "position": self.context_length,
            "expert": self.num_experts,
            "class": self.num_classes,
            "channel": self.num_channels,
            "patch": self.patch_size,
            "pixel": self.num_channels * self.patch_size**2,
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


def table_of(shape: ModelShape) -> Family:
    """The registered table of its family, with its head. Raises KeyError, or ValueError for an unknown head."""
    return _bare_table(shape).with_head(shape.head)


def _bare_table(shape: ModelShape) -> Family:
    return own_table(shape.module, shape.family) if shape.module else FAMILIES[shape.family]


def parameters(shape: ModelShape, family: Family | None = None) -> tuple[Parameter, ...]:
    """Every trainable parameter, in the model's order. A tied head is the same parameter as its embedding.

    family: the table to use in place of the registered one of the shape's family.
    """
    return tuple(one for one in _rows(shape, family) if not one.spec.is_buffer)


def buffers(shape: ModelShape, family: Family | None = None) -> tuple[Parameter, ...]:
    """Every array that belongs to the model and is measured, not trained, in the model's order."""
    return tuple(one for one in _rows(shape, family) if one.spec.is_buffer)


def stored(shape: ModelShape, family: Family | None = None) -> tuple[Parameter, ...]:
    """All that makes up a model, as checkpoints hold it: its parameters, then its buffers."""
    return (*parameters(shape, family), *buffers(shape, family))


def _rows(shape: ModelShape, family: Family | None) -> tuple[Parameter, ...]:
    family = (family or _bare_table(shape)).with_head(shape.head)
    rows = [(spec, None) for spec in family.before]
    rows += [(spec, layer) for layer in range(shape.num_layers) for spec in family.layer if spec.is_in(layer)]
    left_out = {family.head, *family.untied} if shape.ties_head else set()
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
    """A field and what is wrong with it, where the heads do not fit each other or the family; else None."""
    family = FAMILIES[shape.family]
    if not family.has_attention:
        return None
    if shape.num_layers < family.fewest_layers:
        expected = f"expected at least {family.fewest_layers}, as transformers asks of a {family.name}"
        return "num_layers", f"found {shape.num_layers}; {expected}"
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


def image_positions(family: str, image_size: int, patch_size: int) -> int:
    """The context of a model of images: whole patches and the class token of a transformer; the places of a
    convolution with that stride, the last of which may be at the edge of the image."""
    if FAMILIES[family].has_attention:
        return (image_size // patch_size) ** 2 + 1
    return math.ceil(image_size / patch_size) ** 2


def head_problem(shape: ModelShape) -> tuple[str, str] | None:
    """A field and what is wrong with it, where head, classes and images do not fit each other or the family; else
    None."""
    family = FAMILIES[shape.family]
    known = [*([""] if family.objective or shape.module else []), *family.heads]
    if shape.head not in known:
        able = " or ".join(repr(one) for one in known)
        return "head", f"found {shape.head!r}; expected {able}, as a {family.name} can have"
    if shape.head == "classes" and shape.num_classes < 2:
        return "num_classes", f"found {shape.num_classes}; expected at least 2"
    if family.reads_images and not 1 <= shape.patch_size <= shape.image_size:
        return "patch_size", f"found {shape.patch_size}; expected 1 to {shape.image_size}, the side of an image"
    if shape.head == "pixels" and shape.image_size % shape.patch_size:
        found = f"found {shape.patch_size} for images of {shape.image_size}"
        return "patch_size", f"{found}; expected a divisor of it, so that patches make up the whole image"
    return None


def num_params(shape: ModelShape) -> int:
    """The number of trainable parameters."""
    return _count(shape, frozenset())


def num_body_params(shape: ModelShape) -> int:
    """The trainable parameters without embeddings and head: the non-embedding parameters of scaling laws."""
    return _count(shape, table_of(shape).not_body)


# Cached: the plan of a large sweep asks ten thousand times, and the table of a family name never changes.
@lru_cache(maxsize=4096)
def flops_per_token(shape: ModelShape) -> int:
    """Training FLOPs of one token, forward and backward.

    `6 * (non-embedding parameters + hidden_size * vocab_size) + 12 * num_layers * width * context_length` where width
    is `num_heads * head_size` (usually the hidden size). The attention term counts the whole square, not only its
    causal half; of a layer with a window no more than the window (`attended`). In a mixture only the experts of a token
    count. Source: Kaplan et al. (2001.08361) with the attention term of PaLM (2204.02311, appendix B).

    The result equals torch's count of matrix products in a forward and a backward pass, plus six for every gain and
    bias: under 1 % from a hidden size of 128 on. In a context beyond a window torch computes, and counts, the scores
    outside of the window too, and then hides them. Fused attention that computes its scores again in the backward pass
    does 14 instead of 12 per score, and activation checkpointing does another forward pass. Neither is useful work, so
    neither counts.

    With another head than one of language: a position's share of the whole sample, rounded down.
    """
    if shape.head or shape.module:
        return sample_flops(shape, shape.context_length) // shape.context_length
    attention = shape.units("query") * attended(shape, shape.context_length)
    active = replace(shape, num_experts=shape.experts_per_token)
    router = shape.num_layers * shape.hidden_size * (shape.num_experts - shape.experts_per_token)
    return 6 * (num_body_params(active) + router + shape.hidden_size * shape.vocab_size) + 12 * attention


def attended(shape: ModelShape, length: int, layers: int | None = None) -> int:
    """The tokens that one token attends to, added up over all layers, or over the lowest `layers`: all `length`, in a
    layer with a window at most so many. The first tokens of a sequence count as the others do."""
    layers = shape.num_layers if layers is None else layers
    windows = FAMILIES[shape.family].windows
    if windows is None:
        return layers * length
    kinds = shape.layer_kinds[:layers]
    full = kinds.count("f") if kinds else windows.num_full(layers)
    return full * length + (layers - full) * min(length, windows.reach(shape.sliding_window))


def _count(shape: ModelShape, skipped: frozenset[str]) -> int:
    """The elements of all parameters except the skipped ones, computed from two layers: fast for any depth."""
    return sum(one.numel * times for one, times in _counted(shape) if one.name not in skipped)


def _counted(shape: ModelShape) -> Iterator[tuple[Parameter, int]]:
    """The parameters of the first two layers and of what is outside of layers, with how many there are of each: all
    layers but the first are alike."""
    for one in parameters(shape.with_layers(min(2, shape.num_layers))):
        yield one, shape.num_layers - 1 if one.layer == 1 else 1


@lru_cache(maxsize=4096)
def token_flops(shape: ModelShape, context_length: int) -> int:
    """Training FLOPs of one token in a context of this length."""
    return flops_per_token(replace(shape, context_length=context_length))


@lru_cache(maxsize=4096)
def sample_flops(shape: ModelShape, length: int) -> int:
    """Training FLOPs of one whole sample of `length` positions, forward and backward.

    Counted as in `flops_per_token`: six for each parameter and each position that it acts on. What embeds patches acts
    on the patches, a head for classes on one position. length: of an image that of the context.
    """
    if shape.module:
        return own_model(shape.module).flops(length)
    if not shape.head:
        return length * token_flops(shape, length)
    table, active = table_of(shape), replace(shape, num_experts=shape.experts_per_token)
    acted_on = {"position": length, "patch": length - 1, "sample": 1}
    router = shape.num_layers * shape.hidden_size * (shape.num_experts - shape.experts_per_token) * length
    products = sum(
        one.numel * acted_on[one.spec.acts_on] * times
        for one, times in _counted(active)
        if one.name not in table.embeddings or one.spec.acts_on == "patch"
    )
    return 6 * (products + router) + 12 * shape.units("query") * attended(shape, length) * length


def sample_outputs(shape: ModelShape, length: int) -> int:
    """How many numbers a model says of one sample of `length` positions: scores of tokens or of classes, or pixels."""
    if shape.head == "classes":
        return shape.num_classes
    if shape.module and shape.head == "pixels":
        return shape.num_channels * shape.image_size**2
    patches = length - 1 if FAMILIES[shape.family].has_attention else length
    return patches * shape.units("pixel") if shape.head else length * shape.vocab_size
