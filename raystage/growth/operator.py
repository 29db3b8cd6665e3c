"""Growth maps: for each parameter of the target, where its value and its optimizer state come from.

An operator is one entry in `OPERATORS`. A growth map is pure data: it can be printed, compared and
tested without a tensor in sight, and any slice of any target parameter can be computed from it
alone (`growth.apply`), which is how each worker reads only what it owns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from raystage.growth import depth
from raystage.shape import ModelShape, Parameter, parameters

OPTIMIZER_STATE_POLICIES = ("grow", "reset", "keep")


@dataclass(frozen=True)
class LayerOrigin:
    """Where layer `i` of the target comes from. A `new` layer starts with an optimizer state of its own, zeros;
    `silenced` means that its projections onto the residual stream start at zero."""

    source: int
    new: bool = False
    silenced: bool = False


@dataclass(frozen=True)
class Operator:
    """A way to grow.

    layers(l, L): the L layer origins of the target, from l source layers.
    refuse(l, L): why it cannot grow l to L layers (found and expected), or None.
    exact: the grown model computes the same function.
    """

    name: str
    layers: Callable[[int, int], tuple[LayerOrigin, ...]]
    refuse: Callable[[int, int], str | None]
    exact: bool
    summary: str
    source: str


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


def _stack(sources: int, targets: int) -> tuple[LayerOrigin, ...]:
    return tuple(LayerOrigin(i) for i in depth.stack(sources, targets))


def _interleave(sources: int, targets: int) -> tuple[LayerOrigin, ...]:
    return tuple(LayerOrigin(i) for i in depth.interleave(sources, targets))


def _identity(sources: int, targets: int) -> tuple[LayerOrigin, ...]:
    """The interleaved order: the first of each run of copies is the kept layer, the others are silenced."""
    origins, kept = [], set()
    for source in depth.interleave(sources, targets):
        origins.append(LayerOrigin(source, new=source in kept, silenced=source in kept))
        kept.add(source)
    return tuple(origins)


def _not_fewer(sources: int, targets: int) -> str | None:
    return None if targets >= sources else f"found {targets} layers after {sources}; expected at least {sources}"


def _multiple(sources: int, targets: int) -> str | None:
    if targets >= sources and targets % sources == 0:
        return None
    fitting = ", ".join(str(sources * factor) for factor in (1, 2, 3, 4))
    return f"found {targets} layers after {sources}; expected a multiple to stack ({fitting}, ...)"


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
            "identity", _identity, _not_fewer, exact=True,
            summary="interleaved, with the residual projections of the new layers at zero",
            source="LLaMA-Pro block expansion (2401.02415); G_zero depth (2405.15319)",
        ),
    )
}  # fmt: skip


def growth_map(source: ModelShape, target: ModelShape, operator: str, optimizer_state: str) -> GrowthMap:
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
    found = refusal(source, target, operator)
    if found:
        raise ValueError(found[1])
    chosen = OPERATORS[operator]
    origins = chosen.layers(source.num_layers, target.num_layers)
    layer_names = {(p.spec.name, p.layer): p.name for p in parameters(source)}
    return tuple(_rule(p, origins, layer_names, optimizer_state) for p in parameters(target))


def refusal(source: ModelShape, target: ModelShape, operator: str) -> tuple[str, str] | None:
    """The field of the target that the operator cannot grow to, and why; None where it can."""
    for field in changed_fields(source, target):
        if field != "num_layers":
            return (
                field,
                f"found {getattr(target, field)} after {getattr(source, field)}; {operator} grows num_layers only",
            )
    problem = OPERATORS[operator].refuse(source.num_layers, target.num_layers)
    return ("num_layers", problem) if problem else None


def changed_fields(source: ModelShape, target: ModelShape) -> list[str]:
    """The fields in which two shapes differ, but for context_length, which has no parameters of its own."""
    names = [field.name for field in fields(ModelShape) if field.name != "context_length"]
    return [name for name in names if getattr(source, name) != getattr(target, name)]


def initial_map(target: ModelShape, std: float) -> GrowthMap:
    """The rules of a model that starts from nothing: the family's own initialisation."""
    return tuple(Rule(p.name, p.shape, weights=p.spec.init, moments="zeros", std=std) for p in parameters(target))


def _rule(
    parameter: Parameter,
    origins: tuple[LayerOrigin, ...],
    layer_names: dict[tuple[str, int | None], str],
    optimizer_state: str,
) -> Rule:
    origin = LayerOrigin(0) if parameter.layer is None else origins[parameter.layer]
    source_layer = None if parameter.layer is None else origin.source
    silent = origin.silenced and parameter.spec.writes_residual
    return Rule(
        target=parameter.name,
        shape=parameter.shape,
        source=layer_names[parameter.spec.name, source_layer],
        weights="zeros" if silent else "copy",
        moments="zeros" if optimizer_state == "reset" or origin.new else "copy",
    )
