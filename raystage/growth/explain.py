"""A growth map for people: what becomes of what, a layer's parameters folded where they share a rule."""

from __future__ import annotations

from dataclasses import dataclass

from raystage.growth.operator import GrowthMap, Rule
from raystage.shape import ModelShape, Parameter, parameters


@dataclass(frozen=True)
class MapLine:
    """Parameters of the target, where they come from, and by which rules for weights and moments."""

    target: str
    source: str
    weights: str
    moments: str


def explain(source: ModelShape, target: ModelShape, rules: GrowthMap) -> list[MapLine]:
    """The map line by line, in the model's order: one line for a layer whose parameters all have the same rule."""
    origins = {parameter.name: parameter for parameter in parameters(source)}
    lines, layers = [], {}
    for parameter, rule in zip(parameters(target), rules, strict=True):
        if parameter.layer is None:
            lines.append(MapLine(rule.target, rule.source or "-", *_rules(rule)))
            continue
        if parameter.layer not in layers:
            layers[parameter.layer] = {}
            lines.append(layers[parameter.layer])
        origin = origins[rule.source].layer if rule.source else None
        layers[parameter.layer].setdefault((origin, *_rules(rule)), []).append(parameter)
    return [one for line in lines for one in ([line] if isinstance(line, MapLine) else _folded(line))]


def layer_sources(source: ModelShape, target: ModelShape, rules: GrowthMap) -> tuple[int | None, ...]:
    """For each target layer the source layer its parameters come from; None where they come from none."""
    origins = {parameter.name: parameter.layer for parameter in parameters(source)}
    found: list[int | None] = [None] * target.num_layers
    for parameter, rule in zip(parameters(target), rules, strict=True):
        if parameter.layer is not None and rule.source is not None:
            found[parameter.layer] = origins[rule.source]
    return tuple(found)


def _rules(rule: Rule) -> tuple[str, str]:
    scaled = f" x {rule.gradient_factor:g}" if rule.gradient_factor != 1.0 and rule.moments == "copy" else ""
    return rule.weights, rule.moments + scaled


def _folded(layer: dict[tuple[int | None, str, str], list[Parameter]]) -> list[MapLine]:
    """A layer's lines, the largest group first; the names of the smaller ones are written out."""
    groups = sorted(layer.items(), key=lambda group: -len(group[1]))
    lines = []
    for (origin, weights, moments), members in groups:
        stem = members[0].spec.name.partition("{layer}")[0]
        names = f": {', '.join(_short(member) for member in members)}" if lines else f": the other {len(members)}"
        which = ".*" if len(groups) == 1 else names
        source = f"{stem}{origin}{which}" if weights == "copy" else "-"
        lines.append(MapLine(f"{stem}{members[0].layer}{which}", source, weights, moments))
    return lines


def _short(parameter: Parameter) -> str:
    """'model.layers.{layer}.mlp.down_proj.weight' -> 'down_proj'."""
    return parameter.spec.name.split(".")[-2]
