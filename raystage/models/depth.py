"""The depth of every parameter of a model, and the FLOPs that frozen parameters save.

What stands before the layers has the depth -1, layer number l the depth l, and what stands after the layers (the last
norm and the head) the depth `num_layers`. A head that is tied to the embedding is as deep as the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from raystage.models.shape import ModelShape, Parameter, attended, parameters, table_of
from raystage.models.table import Family


@lru_cache(maxsize=256)
def depths(shape: ModelShape) -> Mapping[str, int]:
    """By name the depth of every trainable parameter, in the model's order."""
    before = {row.name for row in table_of(shape).before}
    outside = {True: -1, False: shape.num_layers}
    return {one.name: outside[one.name in before] if one.layer is None else one.layer for one in parameters(shape)}


def rates_by_depth(shape: ModelShape, factor: float) -> dict[str, float]:
    """By name what the learning rate of every parameter is multiplied by: 1 in the last layer and above it, and
    `factor` once more in every layer further down; least for the embeddings.

    Source: discriminative fine-tuning, Howard and Ruder (1801.06146).
    """
    top = shape.num_layers - 1
    return {name: factor ** max(0, top - depth) for name, depth in depths(shape).items()}


@lru_cache(maxsize=256)
def hidden_matrices(shape: ModelShape) -> frozenset[str]:
    """The names of the matrices of the layers, of the stacks of matrices of experts, and of convolutions: what Muon
    makes orthogonal."""
    return frozenset(one.name for one in parameters(shape) if one.layer is not None and len(one.shape) >= 2)


def num_in_hidden_matrices(shape: ModelShape) -> int:
    """Their elements, computed from a single layer."""
    layer = shape.with_layers(1)
    return shape.num_layers * sum(one.numel for one in parameters(layer) if one.name in hidden_matrices(layer))


@lru_cache(maxsize=1024)
def saved_flops(shape: ModelShape, frozen: frozenset[str], length: int, adapted: frozenset[str] = frozenset()) -> int:
    """FLOPs that training on one sample of `length` positions takes less while the parameters of these names are
    frozen, of those that `models.shape.sample_flops` counts.

    A frozen matrix has no gradient of its own: two of six FLOPs for each parameter and position. Below the lowest
    parameter that is trained nothing has a gradient of its input either: two more, and 8 of 12 of the attention.
    adapted: the names of frozen matrices beside which an adapter is trained.
    """
    if not frozen or shape.module:  # of a model without a table nothing says which products a parameter is in
        return 0
    depth_of, table = depths(shape), table_of(shape)
    lowest, constant = _lowest(shape, frozen - adapted), constant_inputs(shape, frozen, adapted)
    acted_on = {"position": length, "patch": length - 1, "sample": 1}
    saved = 0
    for one in parameters(shape):
        if one.name not in table.embeddings or one.spec.acts_on == "patch":
            own = one.name in frozen
            inputs = one.name in constant or not _passes_down(one, depth_of[one.name], lowest, table)
            saved += 2 * (own + inputs) * _active_numel(one, shape) * acted_on[one.spec.acts_on]
    if shape.ties_head and table.embeddings[0] in frozen:  # as the head, above all layers
        saved += 2 * shape.hidden_size * shape.vocab_size * length
    below = max(0, min(lowest, shape.num_layers))
    below += any(one.name in constant and _place(one) == _OUTPUT for one in parameters(shape))
    return saved + 8 * shape.units("query") * attended(shape, length, below) * length


def _lowest(shape: ModelShape, frozen: frozenset[str]) -> int:
    """The depth of the lowest parameter that is trained."""
    return min((depth for name, depth in depths(shape).items() if name not in frozen), default=shape.num_layers + 1)


@lru_cache(maxsize=256)
def constant_inputs(shape: ModelShape, frozen: frozenset[str], adapted: frozenset[str]) -> frozenset[str]:
    """The names of the matrices of the lowest layer with an adapter whose inputs need no gradient, because nothing that
    is trained comes before them. frozen, adapted: as in `saved_flops`."""
    lowest, depth_of = _lowest(shape, frozen - adapted), depths(shape)
    trained = [one for one in parameters(shape) if one.name not in frozen - adapted and depth_of[one.name] == lowest]
    if not adapted or any(one.name not in adapted for one in trained):
        return frozenset()
    first = min(map(_place, trained))
    in_layer = (one for one in parameters(shape) if one.layer == lowest and len(one.shape) >= 2)
    return frozenset(one.name for one in in_layer if _place(one) <= first)


# The matrices of a layer in the order in which they are computed: queries, keys and values; the output of the
# attention; what goes into the feed-forward part; what comes out of it.
_INTO_ATTENTION, _OUTPUT, _INTO_FFN, _OUT_OF_FFN = range(4)


def _place(one: Parameter) -> int:
    made = {unit for axis in one.spec.axes if axis.role == "out" for unit in axis.units}
    read = {unit for axis in one.spec.axes if axis.role == "in" for unit in axis.units}
    if read == {"hidden"}:
        return _INTO_ATTENTION if made and made <= {"query", "key_value"} else _INTO_FFN
    return _OUTPUT if read == {"query"} else _OUT_OF_FFN


def _active_numel(one: Parameter, shape: ModelShape) -> int:
    """Its elements that act on a position: of experts those of the chosen ones."""
    is_of_experts = one.expert is not None or any(axis.role == "each" for axis in one.spec.axes)
    return one.numel * shape.experts_per_token // shape.num_experts if is_of_experts else one.numel


def _passes_down(one: Parameter, depth: int, lowest: int, table: Family) -> bool:
    """Whether the gradient of its input is needed: something that is trained lies below, or a norm before it.

    Without a norm before them (BERT, OLMo 2) the first matrices of the lowest part that is trained have a constant
    input.
    """
    if one.spec.is_bare_in_first and depth == lowest == 0:
        return False
    if depth != lowest or not table.reads_stream:
        return depth >= lowest
    made = {unit for axis in one.spec.axes if axis.role == "out" for unit in axis.units}
    first = {"query", "key_value"} if one.layer is not None else {"hidden"}
    return not (len(one.shape) == 2 and made <= first and one.spec.axes[-1].units == ("hidden",))
