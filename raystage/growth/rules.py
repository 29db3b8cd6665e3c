"""Growth maps: for each parameter of the target the source of its value and of its optimizer state.

A growth map is plain data: it can be printed, compared and tested without tensors. Any slice of any target parameter
can be computed from it (`growth.apply`), so each worker reads only what it owns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from raystage.growth.axis_maps import (
    AxisMap,
    end_to_end,
    head_by_head,
    spread_map,
    statistics_map,
    unchanged,
    without_copies,
)  # fmt: skip
from raystage.growth.checks import exchanges_head, heads_of, is_exact, refusal, stream_of
from raystage.growth.depth import NO_OPTIONS, GrowthOptions, LayerOrigin
from raystage.growth.operators import OPERATORS, OPTIMIZER_STATE_POLICIES, layer_origins, width_operator
from raystage.growth.width import WIDTH_OPERATORS, key_value_map, more_positions, more_vocabulary
from raystage.models.shape import ModelShape, Parameter, stored, table_of
from raystage.models.table import UNITS, Axis, Family, ParameterSpec
from raystage.models.tables.mixtures import UPCYCLED

_UNITS = tuple(unit for unit in UNITS if unit != "expert")
_ROLES = (
    "out",
    "scaled out",
    "in",
    "bare in",
    "gain",
    "branch gain",
    "shift",
    "statistic",
    "final gain",
    "final shift",
)


@dataclass(frozen=True)
class Rule:
    """How one target parameter is made.

    weights: "copy" of the source, "mapped" from it axis by axis, "zeros", or the family's own initialisation ("normal",
    "ones", or "drawn" by the model's own code). moments: "copy" or "zeros"; mapped ones are zero where an axis keeps
    none; "none" of a buffer, which has no optimizer state and goes with its units: copies of a unit have the same
    statistics. sources: the source's parameter, or several laid end to end. source_shape: of these together. beyond:
    the same parameters of the next layer, for axes that need them. init, std: how fresh elements are drawn. gradient:
    what the factors of the axes tell about the gradient right after growth: "exact", "estimated" or "none". offset: of
    the gains of a norm what the model adds to the stored values; axes and "zeros" act on the sum. A parameter whose
    moments are zeros starts with an optimizer step count of its own, at 0.
    """

    target: str
    shape: tuple[int, ...]
    weights: str
    moments: str
    sources: tuple[str, ...] = ()
    source_shape: tuple[int, ...] = ()
    axes: tuple[AxisMap, ...] = ()
    beyond: tuple[str, ...] = ()
    init: str = "normal"
    std: float = 0.0
    gradient: str = "none"
    offset: float = 0.0

    @property
    def source(self) -> str | None:
        return self.sources[0] if self.sources else None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


GrowthMap = tuple[Rule, ...]


def growth_map(
    source: ModelShape,
    target: ModelShape,
    operator: str,
    optimizer_state: str,
    options: GrowthOptions = NO_OPTIONS,
    families: tuple[Family, Family] | None = None,
) -> GrowthMap:
    """The rules that make a model of shape `target` from one of shape `source`, one per target parameter and buffer.

    optimizer_state: "grow" lets each rule decide, "reset" starts all moments at zero, "keep" keeps the moments of every
    parameter whose shape did not change (with depth, which changes no shape, that is "grow"). families: the tables of
    source and target, where they are not the registered ones. Raises ValueError where the operator cannot grow the
    source to the target.

    Where the two have different heads, what the new head has alone is drawn anew, and what the old one has is dropped.
    """
    if optimizer_state not in OPTIMIZER_STATE_POLICIES:
        policies = ", ".join(OPTIMIZER_STATE_POLICIES)
        raise ValueError(f"found the optimizer_state {optimizer_state!r}; expected one of {policies}")
    if "=" not in operator and operator not in OPERATORS:
        raise ValueError(f"found the operator {operator!r}; expected one of {', '.join(OPERATORS)}")
    found = refusal(source, target, operator, options)
    if found:
        raise ValueError(found[1])
    tables = families or (table_of(source), table_of(target))
    return _Growing(source, target, operator, optimizer_state, options, tables).rules()


def slices(rule: Rule, most: int) -> Iterator[tuple[int, int]]:
    """The target parameter as slices of at most `most` elements, of whole rows where rows are shorter."""
    row = rule.shape[-1] if rule.shape else 1
    step = most // row * row or most
    for start in range(0, rule.numel, step):
        yield start, min(rule.numel, start + step)


def exact_in(rules: GrowthMap) -> str:
    """The precision in which an exact growth keeps the function: "any" where all old weights are copied whole.

    "fp32", up to rounding, where weights are scaled, averaged or part of longer rows: bf16 and fp16 round these to 8
    and 11 bits, which changes the logits.
    """
    return "fp32" if any(rule.weights == "mapped" for rule in rules) else "any"


def initial_map(target: ModelShape) -> GrowthMap:
    """The rules of a model with random weights: the family's own initialisation."""
    family = table_of(target)
    return tuple(_fresh(one, family, family.init_std) for one in stored(target))


class _Growing:
    """What all rules of one growth share."""

    def __init__(
        self,
        source: ModelShape,
        target: ModelShape,
        operator: str,
        optimizer_state: str,
        options: GrowthOptions,
        families: tuple[Family, Family],
    ) -> None:
        self.source, self.target, self.optimizer_state = source, target, optimizer_state
        self.family = families[1]
        self.origins = layer_origins(source, target, operator, options)
        self.found = {(one.spec.name, one.layer, one.expert): one for one in stored(source, families[0])}
        self.maps = unit_maps(source, target, operator)
        self.exact = is_exact(source, target, operator, options)
        # Another head has another loss, so nothing is known of gradients.
        self.exchanges_head = exchanges_head(source, target)

    def rules(self) -> GrowthMap:
        return tuple(self._rule(one) for one in stored(self.target, self.family))

    def _rule(self, parameter: Parameter) -> Rule:
        origin = LayerOrigin(None) if parameter.layer is None else self.origins[parameter.layer]
        if parameter.layer is not None and origin.source is None:
            return _fresh(parameter, self.family, self._depth_scaled_std(parameter))
        sources = self._sources(parameter, origin.source)
        if not sources:
            return _fresh(parameter, self.family, self.family.init_std)
        axes = tuple(self._axis(axis, parameter) for axis in parameter.spec.axes)
        if origin.silenced:
            axes = tuple(map(_apart, parameter.spec.axes, axes))
        plain = all(axis.is_identity for axis in axes)
        kept = all(axis.keeps.any() for axis in axes) and not (self.optimizer_state == "keep" and not plain)
        silent = origin.silenced and parameter.spec.writes_residual
        sure = self.exact and all(axis.predicts for axis in axes)
        following = self._sources(parameter, self._next(origin.source))
        return Rule(
            target=parameter.name,
            shape=parameter.shape,
            weights="zeros" if silent else "copy" if plain else "mapped",
            moments=_moments(parameter.spec, kept and not origin.new and self.optimizer_state != "reset"),
            sources=tuple(one.name for one in sources),
            source_shape=tuple(axis.source for axis in axes),
            axes=() if plain or silent else axes,
            beyond=tuple(one.name for one in following) if any(axis.beyond for axis in axes) else (),
            init=_init(parameter.spec, self.family),
            std=self.family.init_std,
            gradient=self._gradient(parameter.spec, origin, sure),
            offset=self.family.gain_offset if parameter.spec.is_gain else 0.0,
        )

    def _gradient(self, spec: ParameterSpec, origin: LayerOrigin, sure: bool) -> str:
        if origin.new or self.exchanges_head or spec.is_buffer:
            return "none"
        return "exact" if sure else "estimated"

    def _sources(self, parameter: Parameter, layer: int | None) -> tuple[Parameter, ...]:
        """The source parameters in the source's `layer`: the one with the same name, or the dense rows of an expert; or
        none. None for the scores of other classes."""
        is_of_classes = any("class" in axis.units for axis in parameter.spec.axes)
        if is_of_classes and self.source.num_classes != self.target.num_classes:
            return ()
        name = parameter.spec.name
        if (name, layer, parameter.expert) in self.found:
            found = self.found[name, layer, parameter.expert]
            return (found,) if self._is_of_its_kind(found, parameter) else ()
        if layer == 0 and name in self.family.stand_ins:  # a copy of the first layer, in another place
            return (self.found[self.family.stand_ins[name], None, None],)
        return tuple(self.found[one, layer, None] for one in UPCYCLED.get(name, ()))

    def _is_of_its_kind(self, source: Parameter, target: Parameter) -> bool:
        """Whether axes that never grow have the same size: not where a model of no table has another head."""
        pairs = zip(source.spec.axes, target.spec.axes, strict=False)
        return all(one.fixed == other.fixed for one, other in pairs) and len(source.shape) == len(target.shape)

    def _next(self, layer: int | None) -> int | None:
        return None if layer is None else min(layer + 1, self.source.num_layers - 1)

    def _axis(self, axis: Axis, parameter: Parameter) -> AxisMap:
        spec = parameter.spec
        if axis.role == "fixed":
            return unchanged(axis.fixed)
        if axis.role == "each":
            return _each(self.source.num_experts, self.target.num_experts)
        role = f"final {axis.role}" if spec.feeds_head else axis.role
        role = "bare in" if role == "in" and spec.is_bare_in_first and parameter.layer == 0 else role
        maps = [self.maps[role, unit] for unit in axis.units]
        found = head_by_head(maps, self.target.head_size) if axis.by_head else end_to_end(maps)
        # A norm over copies with unequal shares mixes their gradients.
        return replace(found, predicts=False) if spec.normed and role == "out" and not found.is_identity else found

    def _depth_scaled_std(self, parameter: Parameter) -> float:
        """`std / sqrt(2 L)` for parameters that write to the residual stream, of which there are 2 L (GPT-2,
        Megatron)."""
        std = self.family.init_std
        return std / math.sqrt(2 * self.target.num_layers) if parameter.spec.writes_residual else std


def unit_maps(source: ModelShape, target: ModelShape, operator: str) -> Mapping[tuple[str, str], AxisMap]:
    """The axis map of every role and kind of unit."""
    maps: dict[tuple[str, str], AxisMap] = {}
    for unit in _UNITS:
        for role in _ROLES:
            maps[role, unit] = unchanged(target.units(unit))
    if source.hidden_size != target.hidden_size:
        chosen = WIDTH_OPERATORS[width_operator(operator, "hidden_size")]
        stream = replace(stream_of(source), tied=source.ties_head and target.ties_head)
        grown = chosen.hidden(source.hidden_size, target.hidden_size, stream)
        grown = {"bare in": grown["in"], **grown, "statistic": statistics_map(grown["out"])}
        grown = _with_scaled_embeddings(grown, source, target) if table_of(target).scales_embeddings else grown
        maps |= {(role, "hidden"): _named("hidden", one) for role, one in grown.items()}
    if source.ffn_size != target.ffn_size:
        chosen = WIDTH_OPERATORS[width_operator(operator, "ffn_size")]
        grown = chosen.inner(chosen.units(source.ffn_size, target.ffn_size))
        # A norm inside of a layer acts on what the layer makes there.
        grown |= {"gain": grown["out"], "shift": grown["out"], "statistic": statistics_map(grown["out"])}
        maps |= {(role, "ffn"): _named("ffn", one) for role, one in grown.items()}
    maps |= _head_maps(source, target, operator)
    if source.vocab_size != target.vocab_size:
        maps["out", "vocab"] = _named("vocab", more_vocabulary(source.vocab_size, target.vocab_size))
    if source.context_length != target.context_length:
        maps["out", "position"] = _named("positions", more_positions(source.context_length, target.context_length))
    return maps


def _with_scaled_embeddings(maps: Mapping[str, AxisMap], source: ModelShape, target: ModelShape) -> dict[str, AxisMap]:
    """The maps of a model that multiplies its embeddings by the square root of the hidden size: they become smaller by
    as much as the root becomes larger. Where they are also the head, the norm before it makes up for that."""
    root = math.sqrt(source.hidden_size / target.hidden_size)
    tied = source.ties_head and target.ties_head
    finals = {role: _times(maps[role], 1 / root, root) for role in ("final gain", "final shift")} if tied else {}
    return {**maps, "scaled out": _times(maps["out"], root, 1 / root), **finals}


def _times(one: AxisMap, value: float, gradient: float) -> AxisMap:
    values, gradients = one.values * value, one.gradients * gradient
    return replace(one, value=tuple(values.tolist()), gradient=tuple(gradients.tolist()))


def _head_maps(source: ModelShape, target: ModelShape, operator: str) -> dict[tuple[str, str], AxisMap]:
    before, after, size = heads_of(source), heads_of(target), target.head_size
    if before == after:
        return {}
    name = width_operator(operator, "num_heads")
    chosen = WIDTH_OPERATORS[name]
    query, key_value = chosen.heads(before, after)
    maps = {(role, "query"): one for role, one in chosen.inner(query).items()}
    maps["out", "key_value"] = key_value_map(maps["out", "query"], query, key_value, name)
    maps |= {("gain", unit): maps["out", unit] for unit in ("query", "key_value")}
    return {role: _named("heads", spread_map(one, size)) for role, one in maps.items()}


def _named(unit: str, one: AxisMap) -> AxisMap:
    """The map with the kind of units in its note; a map that changes nothing (key/value heads that stay) says so."""
    factors_are_one = max(abs(one.values - 1).max(), abs(one.gradients - 1).max()) < 1e-12
    same = tuple(one.index) == tuple(range(one.source)) and one.keeps.all() and factors_are_one
    return unchanged(one.source) if same else replace(one, note=f"{unit} {one.note}")


def _each(source: int, target: int) -> AxisMap:
    """Experts: the same ones, or all of them copies of the one dense layer, each of which sees its share of the
    tokens."""
    if source == target:
        return unchanged(source)
    return AxisMap(f"experts upcycle > {target}", 1, (0,) * target, (), (1 / target,) * target, predicts=False)


def _apart(axis: Axis, one: AxisMap) -> AxisMap:
    """In a silenced layer zeros read all inner units, so copies of one unit would stay equal for ever. So only the
    first one is a copy there; the function does not depend on the others."""
    is_inner = axis.role == "out" and set(axis.units) <= {"query", "key_value", "ffn"}
    return without_copies(one) if is_inner else one


def _fresh(parameter: Parameter, family: Family, std: float) -> Rule:
    init = _init(parameter.spec, family)
    moments = _moments(parameter.spec, kept=False)
    return Rule(parameter.name, parameter.shape, weights=init, moments=moments, init=init, std=std)


def _init(spec: ParameterSpec, family: Family) -> str:
    return "drawn" if family.module else spec.init


def _moments(spec: ParameterSpec, kept: bool) -> str:
    if spec.is_buffer:
        return "none"
    return "copy" if kept else "zeros"
