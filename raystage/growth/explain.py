"""A growth map for people: what each parameter comes from, with the parameters of a layer folded where they share a
rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raystage.growth.checks import exchanges_head
from raystage.growth.rules import GrowthMap, Rule
from raystage.models.shape import ModelShape, Parameter, stored
from raystage.models.table import Family


@dataclass(frozen=True)
class MapLine:
    """Parameters of the target, where they come from, and by which rules for weights and moments."""

    target: str
    source: str
    weights: str
    moments: str


Families = tuple[Family | None, Family | None]

# What people call the sizes of a model.
_NAMES = {
    "num_layers": "layers", "hidden_size": "hidden size", "ffn_size": "FFN size", "num_heads": "heads",
    "num_kv_heads": "key/value heads", "vocab_size": "vocabulary", "context_length": "context",
    "num_experts": "experts",
}  # fmt: skip
_COUNTED = ("layers", "heads", "key/value heads", "experts")


def what_grows(source: ModelShape, target: ModelShape) -> str:
    """'2 -> 4 layers, hidden size 16 -> 32'; for a model that keeps its size, its layers."""
    changed = [field for field in _NAMES if getattr(source, field) != getattr(target, field)]
    parts = []
    for field in changed or ["num_layers"]:
        name, sizes = _NAMES[field], f"{getattr(source, field)} -> {getattr(target, field)}"
        parts.append(f"{sizes} {name}" if name in _COUNTED else f"{name} {sizes}")
    if exchanges_head(source, target):
        parts.append(f"a new head for {head_in_words(target)}")
    return ", ".join(parts)


def head_in_words(shape: ModelShape) -> str:
    """What a model's head makes: 'tokens', '10 classes', 'pixels'."""
    return f"{shape.num_classes} classes" if shape.num_classes else shape.head or "tokens"


def explain(
    source: ModelShape, target: ModelShape, rules: GrowthMap, families: Families = (None, None)
) -> list[MapLine]:
    """The map line by line, in the model's order: one line for a layer whose parameters all have the same rule.

    families: the tables of source and target, where they are not the registered ones.
    """
    origins = {parameter.name: parameter for parameter in stored(source, families[0])}
    lines, layers = [], {}
    for parameter, rule in zip(stored(target, families[1]), rules, strict=True):
        if parameter.layer is None:
            lines.append(MapLine(rule.target, rule.source or "-", *_rules(rule)))
            continue
        if parameter.layer not in layers:
            layers[parameter.layer] = {}
            lines.append(layers[parameter.layer])
        sources = [origins[source] for source in rule.sources]
        origin = sources[0].layer if sources else None
        rows = tuple(source.spec.name for source in sources)
        others = rows if rows not in ((), (parameter.spec.name,)) else ()
        layers[parameter.layer].setdefault((origin, others, *_rules(rule)), []).append(parameter)
    return [one for line in lines for one in ([line] if isinstance(line, MapLine) else _folded(line))]


def layer_sources(
    source: ModelShape, target: ModelShape, rules: GrowthMap, families: Families = (None, None)
) -> tuple[int | None, ...]:
    """For each target layer the source layer of its parameters; None where there is none."""
    origins = {parameter.name: parameter.layer for parameter in stored(source, families[0])}
    found: list[int | None] = [None] * target.num_layers
    for parameter, rule in zip(stored(target, families[1]), rules, strict=True):
        if parameter.layer is not None and rule.source is not None:
            found[parameter.layer] = origins[rule.source]
    return tuple(found)


def _rules(rule: Rule) -> tuple[str, str]:
    """The rules of weights and moments; "mapped" ones name the units that grow."""
    if rule.weights != "mapped":
        return rule.weights, rule.moments
    notes = ", ".join(dict.fromkeys(axis.note for axis in rule.axes if axis.note))
    kept = "copy, new parts zeros" if any(not axis.keeps.all() for axis in rule.axes) else "copy"
    scaled = ", scaled" if any(axis.gradient for axis in rule.axes) else ""
    return notes, kept + scaled if rule.moments == "copy" else rule.moments


# The layer and, where these are not their namesakes, the rows that parameters come from; their rules.
_Group = tuple[int | None, tuple[str, ...], str, str]
_MOST_NAMES = 3


def _folded(layer: dict[_Group, list[Parameter]]) -> list[MapLine]:
    """A layer's lines. The largest group is only counted, first; the names of the smaller ones are written out."""
    groups = sorted(layer.items(), key=lambda group: -len(group[1]))
    short = _short_names([member.spec.name for _, members in groups for member in members])
    lines = []
    for (origin, others, weights, moments), members in groups:
        stem = members[0].spec.name.partition("{layer}")[0]
        counted = not lines and not others and len(members) > _MOST_NAMES
        names = f": the other {len(members)}" if counted else f": {_listed(short[one.spec.name] for one in members)}"
        which = ".*" if len(groups) == 1 and not others else names
        from_which = f": {_listed(_short_names(list(others)).values())}" if others else which
        made = origin is None or weights == "zeros"
        source = "-" if made else f"{stem}{origin}{from_which}"
        lines.append(MapLine(f"{stem}{members[0].layer}{which}", source, weights, moments))
    return lines


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _short_names(rows: list[str]) -> dict[str, str]:
    """For each row of a layer the shortest end of its name that is unique, without "weight":
    'model.layers.{layer}.mlp.down_proj.weight' -> 'down_proj'."""
    parts = {row: row.partition("{layer}.")[2].removesuffix(".weight").split(".") for row in rows}
    ends: dict[str, str] = {}
    for row, own in parts.items():
        others = [other for name, other in parts.items() if name != row]
        fewest = 2 if own[-1] == "bias" else 1
        lengths = (n for n in range(fewest, len(own)) if all(other[-n:] != own[-n:] for other in others))
        ends[row] = ".".join(own[-next(lengths, len(own)) :])
    return ends
