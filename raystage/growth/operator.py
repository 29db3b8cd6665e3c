"""Growth maps: for each parameter of the target, where its value and its optimizer state come from.

An operator is one entry in `OPERATORS`. A growth map is pure data: it can be printed, compared and
tested without a tensor in sight, and any slice of any target parameter can be computed from it
alone (`growth.apply`), which is how each worker reads only what it owns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from raystage.growth import depth
from raystage.shape import FAMILIES, ModelShape, Parameter, parameters
from raystage.units import shown

OPTIMIZER_STATE_POLICIES = ("grow", "reset", "keep")


@dataclass(frozen=True)
class LayerOrigin:
    """Where layer `i` of the target comes from; source None: from nowhere, it is freshly initialised.

    A `new` layer starts with an optimizer state of its own, zeros; `silenced` means that its projections onto the
    residual stream start at zero.
    """

    source: int | None
    new: bool = False
    silenced: bool = False


@dataclass(frozen=True)
class GrowthOptions:
    """What an operator may be told besides the depths; None where it is not.

    layers: the source layer of every target layer. block: how many layers are repeated as one.
    """

    layers: tuple[int, ...] | None = None
    block: int | None = None

    def given(self) -> dict[str, object]:
        """The options that are given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NO_OPTIONS = GrowthOptions()

# A field of the target's shape, an option's name or "operator", and what is wrong with it (found and expected).
Refusal = tuple[str, str]


def _as_given(sources: int, targets: int, options: GrowthOptions) -> GrowthOptions:
    return options


@dataclass(frozen=True)
class Operator:
    """A way to grow.

    layers(l, L, options): the L layer origins of the target, from l source layers; options are complete.
    refuse(l, L, options): why it cannot grow l to L layers, or None.
    exact: the grown model computes the same function.
    takes: the options it takes. complete(l, L, options): these with what follows where one is not given.
    fewest: the fewest source layers it can add layers to.
    """

    name: str
    layers: Callable[[int, int, GrowthOptions], tuple[LayerOrigin, ...]]
    refuse: Callable[[int, int, GrowthOptions], Refusal | None]
    exact: bool
    summary: str
    source: str
    takes: tuple[str, ...] = ()
    complete: Callable[[int, int, GrowthOptions], GrowthOptions] = _as_given
    fewest: int = 1


@dataclass(frozen=True)
class Rule:
    """How one target parameter comes to be.

    weights: "copy" of `source`, "zeros", or the family's own initialisation ("normal", "ones").
    moments: "copy" (times gradient_factor for exp_avg, its square for exp_avg_sq) or "zeros".
    A parameter whose moments are zeros starts with an optimizer step count of its own, at 0.
    """

    target: str
    shape: tuple[int, ...]
    weights: str
    moments: str
    source: str | None = None
    gradient_factor: float = 1.0
    std: float = 0.0


GrowthMap = tuple[Rule, ...]


def _copies(sources: tuple[int, ...]) -> tuple[LayerOrigin, ...]:
    return tuple(LayerOrigin(source) for source in sources)


def _stack(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(depth.stack(sources, targets))


def _interleave(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(depth.interleave(sources, targets))


def _middle(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(depth.middle(sources, targets, options.block))


def _last(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(depth.last(sources, targets))


def _first(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(depth.first(sources, targets))


def _layers(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(options.layers)


def _random(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    """The source's layers in their order at the bottom, where they were trained, and the new ones on top of them."""
    return (*_copies(tuple(range(sources))), *(LayerOrigin(None, new=True) for _ in range(targets - sources)))


def _identity(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    """The listed order, or the interleaved: of each source layer the first is kept, the others are silenced."""
    origins, kept = [], set()
    for source in depth.interleave(sources, targets) if options.layers is None else options.layers:
        origins.append(LayerOrigin(source, new=source in kept, silenced=source in kept))
        kept.add(source)
    return tuple(origins)


def _with_block(sources: int, targets: int, options: GrowthOptions) -> GrowthOptions:
    return options if options.block else replace(options, block=depth.middle_block(sources, targets))


def _not_fewer(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    if targets >= sources:
        return None
    return "num_layers", f"found {targets} layers after {sources}; expected at least {sources}"


def _multiple(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    if targets == sources or (targets > sources and targets % sources == 0):
        return None
    fitting = ", ".join(str(sources * factor) for factor in (1, 2, 3, 4))
    return "num_layers", f"found {targets} layers after {sources}; expected a multiple to stack ({fitting}, ...)"


def _at_most_twofold(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    if sources <= targets <= 2 * sources:
        return None
    return "num_layers", f"found {targets} layers after {sources}; expected {sources} to {2 * sources}"


def _whole_blocks(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    added, block = targets - sources, options.block
    if added < 0 or block is None:
        return _not_fewer(sources, targets, options)
    if block > sources:
        return "block", f"found {block}; expected at most the source's {sources} layers"
    if added % block:
        return "block", f"found {block}, which does not divide the {added} new layers; expected a divisor of {added}"
    return None


def _listed(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    layers, there = options.layers, f"the source's layers (0 to {sources - 1})"
    if layers is None:
        return "layers", f"missing; expected a list of {targets} of {there}"
    if len(layers) != targets:
        return "layers", f"found a list of {len(layers)}; expected {targets} entries, one for each of num_layers"
    for layer in layers:
        if not 0 <= layer < sources:
            return "layers", f"found {layer}; expected {there}"
    return None


def _kept_in_order(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    """Of a list, the first occurrences are the old model: all of its layers, in their order."""
    wrong = _not_fewer(sources, targets, options)
    if wrong or options.layers is None:
        return wrong
    wrong = _listed(sources, targets, options)
    firsts = tuple(dict.fromkeys(options.layers))
    if wrong or firsts == tuple(range(sources)):
        return wrong
    found = f"found layers that first come in the order {shown(list(firsts))}"
    return "layers", f"{found}; expected all of 0 to {sources - 1} in theirs, since the first of each is the kept one"


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "stack", _stack, _multiple, exact=False,
            summary="layer i of the target is layer i mod l of the source",
            source="progressive stacking (Gong 2019); G_stack (2405.15319)",
        ),
        Operator(
            "interleave", _interleave, _not_fewer, exact=False,
            summary="layer i of the target is layer floor(i*l/L) of the source",
            source="Shen (2203.06211), Bu (2511.04981)",
        ),
        Operator(
            "middle", _middle, _whole_blocks, exact=False,
            summary="the middle one of the source's blocks of layers is repeated where it stands",
            source="MIDAS (2409.19044)",
            takes=("block",), complete=_with_block,
        ),
        Operator(
            "last", _last, _at_most_twofold, exact=False,
            summary="the source, and its last L - l layers once more on top",
            source="gradual stacking (as in 2409.19044); G_stack's partial stacking (2405.15319)",
        ),
        Operator(
            "first", _first, _at_most_twofold, exact=False,
            summary="the source, and its first L - l layers once more below",
            source="G_stack's partial stacking (2405.15319)",
        ),
        Operator(
            "layers", _layers, _listed, exact=False,
            summary="the source's layers as listed",
            source="SOLAR's depth up-scaling (2312.15166); any other order",
            takes=("layers",),
        ),
        Operator(
            "random", _random, _not_fewer, exact=False,
            summary="the source, and freshly initialised layers on top",
            source="Bu (2511.04981)",
            fewest=0,
        ),
        Operator(
            "identity", _identity, _kept_in_order, exact=True,
            summary="interleaved or as listed, with the residual projections of the new layers at zero",
            source="LLaMA-Pro block expansion (2401.02415); G_zero depth (2405.15319)",
            takes=("layers",),
        ),
    )
}  # fmt: skip


def growth_map(
    source: ModelShape,
    target: ModelShape,
    operator: str,
    optimizer_state: str,
    options: GrowthOptions = NO_OPTIONS,
) -> GrowthMap:
    """The rules that make a model of shape `target` from one of shape `source`, one per target parameter.

    optimizer_state: "grow" lets each rule decide, "reset" starts all moments at zero, "keep" carries the
    moments of every parameter whose shape did not change (with depth, which changes none, that is "grow").
    Raises ValueError where the operator cannot grow the one into the other.
    """
    if operator not in OPERATORS:
        raise ValueError(f"found the operator {operator!r}; expected one of {', '.join(OPERATORS)}")
    if optimizer_state not in OPTIMIZER_STATE_POLICIES:
        policies = ", ".join(OPTIMIZER_STATE_POLICIES)
        raise ValueError(f"found the optimizer_state {optimizer_state!r}; expected one of {policies}")
    found = refusal(source, target, operator, options)
    if found:
        raise ValueError(found[1])
    complete = complete_options(source, target, operator, options)
    origins = OPERATORS[operator].layers(source.num_layers, target.num_layers, complete)
    layer_names = {(p.spec.name, p.layer): p.name for p in parameters(source)}
    return tuple(_rule(p, target, origins, layer_names, optimizer_state) for p in parameters(target))


def refusal(
    source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions = NO_OPTIONS
) -> Refusal | None:
    """What the operator cannot grow to or be told, and why; None where it can."""
    for field in changed_fields(source, target):
        if field != "num_layers":
            return (
                field,
                f"found {getattr(target, field)} after {getattr(source, field)}; {operator} grows num_layers only",
            )
    chosen, before, after = OPERATORS[operator], source.num_layers, target.num_layers
    for name, value in options.given().items():
        if name not in chosen.takes:
            return name, _not_taken(operator, name, value)
    if before < chosen.fewest and after > before:
        able = " or ".join(other.name for other in OPERATORS.values() if before >= other.fewest)
        return "operator", f"found {operator!r} after {before} layers, which leave it nothing to copy; expected {able}"
    return chosen.refuse(before, after, options)


def _not_taken(operator: str, option: str, value: object) -> str:
    takers = " or ".join(other.name for other in OPERATORS.values() if option in other.takes)
    found = shown(list(value) if isinstance(value, tuple) else value)
    return f"found {found}, but {operator} takes no {option}; expected operator: {takers}, or no {option}"


def complete_options(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions) -> GrowthOptions:
    """The options with what follows from the depths where one is not given."""
    return OPERATORS[operator].complete(source.num_layers, target.num_layers, options)


def changed_fields(source: ModelShape, target: ModelShape) -> list[str]:
    """The fields in which two shapes differ, but for context_length, which has no parameters of its own."""
    names = [field.name for field in fields(ModelShape) if field.name != "context_length"]
    return [name for name in names if getattr(source, name) != getattr(target, name)]


def initial_map(target: ModelShape, std: float) -> GrowthMap:
    """The rules of a model that starts from nothing: the family's own initialisation."""
    return tuple(_fresh(p, std) for p in parameters(target))


def _rule(
    parameter: Parameter,
    target: ModelShape,
    origins: tuple[LayerOrigin, ...],
    layer_names: dict[tuple[str, int | None], str],
    optimizer_state: str,
) -> Rule:
    origin = LayerOrigin(None) if parameter.layer is None else origins[parameter.layer]
    if parameter.layer is not None and origin.source is None:
        return _fresh(parameter, _depth_scaled_std(parameter, target))
    silent = origin.silenced and parameter.spec.writes_residual
    return Rule(
        target=parameter.name,
        shape=parameter.shape,
        source=layer_names[parameter.spec.name, origin.source],
        weights="zeros" if silent else "copy",
        moments="zeros" if optimizer_state == "reset" or origin.new else "copy",
    )


def _fresh(parameter: Parameter, std: float) -> Rule:
    return Rule(parameter.name, parameter.shape, weights=parameter.spec.init, moments="zeros", std=std)


def _depth_scaled_std(parameter: Parameter, target: ModelShape) -> float:
    """`std / sqrt(2 L)` for what writes to the residual stream, which 2 L projections do (GPT-2, Megatron)."""
    std = FAMILIES[target.family].init_std
    return std / math.sqrt(2 * target.num_layers) if parameter.spec.writes_residual else std
