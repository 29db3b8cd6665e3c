"""The table of growth operators, and what each one can do.

An operator grows one or several parts of a model: its depth, the width of the residual stream, of feed-forward layers
or of heads, its experts. A growth names one operator for everything that changes, or one for each part: `"stack"`, or
`"num_layers=stack, hidden_size=duplicate"`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from raystage.growth.depth import DEPTH_OPERATORS, GrowthOptions, LayerOrigin
from raystage.growth.width import WIDTH_OPERATORS
from raystage.models.families import family_of
from raystage.models.shape import ModelShape
from raystage.units import shown

OPTIMIZER_STATE_POLICIES = ("grow", "reset", "keep")

# The parts that an operator grows, named by the field of the shape with their size. Heads are one part, whichever kind
# of heads grows.
WIDTHS = ("hidden_size", "ffn_size", "num_heads")
PARTS = ("num_layers", *WIDTHS, "num_experts")
PART_OF = {"num_kv_heads": "num_heads", "experts_per_token": "num_experts", "family": "num_experts"}
# The names of parts that users may write.
PART_NAMES = {"depth": ("num_layers",), "width": WIDTHS, **{part: (part,) for part in PARTS}}


@dataclass(frozen=True)
class Operator:
    """A way to grow.

    grows: the parts that it can grow. exact: whether the grown model can compute the same function (`is_exact` tells
    for a growth). takes: the options that it takes. trains: whether it needs training data or a training loop, so that
    it cannot grow a folder alone.
    """

    name: str
    grows: tuple[str, ...]
    exact: bool
    summary: str
    source: str
    takes: tuple[str, ...] = ()
    trains: bool = False


_DEPTH = ("num_layers",)

OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "stack", _DEPTH, exact=False,
            summary="layer i of the target is layer i mod l of the source",
            source="progressive stacking (Gong 2019); G_stack (2405.15319)",
        ),
        Operator(
            "interleave", _DEPTH, exact=False,
            summary="layer i of the target is layer floor(i*l/L) of the source",
            source="Shen (2203.06211), Bu (2511.04981)",
        ),
        Operator(
            "middle", _DEPTH, exact=False,
            summary="the middle one of the source's blocks of layers is repeated where it stands",
            source="MIDAS (2409.19044)",
            takes=("block",),
        ),
        Operator(
            "last", _DEPTH, exact=False,
            summary="the source, and its last L - l layers once more on top",
            source="gradual stacking (as in 2409.19044); G_stack's partial stacking (2405.15319)",
        ),
        Operator(
            "first", _DEPTH, exact=False,
            summary="the source, and its first L - l layers once more below",
            source="G_stack's partial stacking (2405.15319)",
        ),
        Operator(
            "layers", _DEPTH, exact=False,
            summary="the source's layers as listed; it may be fewer",
            source="SOLAR's depth up-scaling (2312.15166), DistilBERT's student (1910.01108); any other order",
            takes=("layers",),
        ),
        Operator(
            "random", _DEPTH, exact=False,
            summary="the source, and freshly initialised layers on top",
            source="Bu (2511.04981)",
        ),
        Operator(
            "identity", _DEPTH, exact=True,
            summary="spread evenly or as listed, with the residual projections of the new layers at zero",
            source="LLaMA-Pro block expansion (2401.02415); G_zero depth (2405.15319)",
            takes=("layers",),
        ),
        Operator(
            "zero_pad", WIDTHS, exact=True,
            summary="new units of the residual stream hold zero, new inner units are read by zeros",
            source="G_zero width (2405.15319)",
        ),
        Operator(
            "duplicate", WIDTHS, exact=True,
            summary="new units copy old ones, whose fan-in they share unevenly",
            source="Net2Net (1511.05641), bert2BERT FPI (2110.07143), LEMON (2310.07999)",
        ),
        Operator(
            "aki", WIDTHS, exact=False,
            summary="new units copy old ones, with the weights of the next layer",
            source="bert2BERT AKI (2110.07143)",
        ),
        Operator(
            "rms", WIDTHS, exact=False,
            summary="new units copy old ones, with the fan-in scaled to keep the activations' RMS",
            source="SPARKLING (2602.02472)",
        ),
        Operator(
            "masked", ("num_layers", *WIDTHS), exact=True,
            summary="new parts drawn anew behind a mask that opens over grow_tokens",
            source="MSG (2305.02869)",
            takes=("grow_tokens",), trains=True,
        ),
        Operator(
            "learned", ("num_layers", *WIDTHS), exact=False,
            summary="every new tensor a linear map of the old ones, fitted for fit_steps",
            source="LiGO (2303.00980)",
            takes=("fit_steps",), trains=True,
        ),
        Operator(
            "upcycle", ("num_experts",), exact=True,
            summary="every expert a copy of the dense feed-forward layer, the router drawn anew",
            source="sparse upcycling (2212.05055)",
        ),
    )
}  # fmt: skip


# --- which operator grows what ------------------------------------------------------------------


def parse_operator(value: str | Mapping[str, str]) -> str:
    """An operator as one string, from a name, a mapping of parts to names, or such a string.

    Keys: num_layers (or depth), hidden_size, ffn_size, num_heads (or width, for the three), num_experts. Raises
    ValueError.
    """
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, str) and "=" in value:
        pairs = [tuple(part.strip() for part in pair.partition("=")[::2]) for pair in value.split(",")]
    else:
        _check_known(value)
        return value
    chosen: dict[str, str] = {}
    for key, name in pairs:
        if key not in PART_NAMES:
            raise ValueError(f"found the part {shown(key)}; expected one of {', '.join(PART_NAMES)}")
        _check_known(name)
        for part in PART_NAMES[key]:
            if part in OPERATORS[name].grows:
                chosen.setdefault(part, name) if key == "width" else chosen.update({part: name})
        if not set(PART_NAMES[key]) & set(OPERATORS[name].grows):
            raise ValueError(f"found {name} for {key}; {name} grows {in_words(OPERATORS[name].grows)} only")
    if not chosen:
        raise ValueError("found no part; expected for example {num_layers: stack, width: duplicate}")
    return ", ".join(f"{part}={chosen[part]}" for part in PARTS if part in chosen)


def _check_known(name: object) -> None:
    if not isinstance(name, str) or name not in OPERATORS:
        close = difflib.get_close_matches(str(name), OPERATORS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"found the operator {shown(name)}; expected one of {', '.join(OPERATORS)}{hint}")


def in_short(operator: str) -> str:
    """The operator for people: "stack", "depth identity, width duplicate"."""
    if "=" not in operator:
        return operator
    named = {part: one.name for part, one in operators_of(operator).items()}
    parts = dict(named)
    if len({named.get(part) for part in WIDTHS}) == 1 and WIDTHS[0] in named:
        parts = {"width" if part in WIDTHS else part: name for part, name in named.items()}
    return ", ".join(f"{'depth' if part == 'num_layers' else part} {name}" for part, name in parts.items())


def in_words(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def operators_of(operator: str) -> dict[str, Operator]:
    """The operator of each part of the model. `operator` is a result of `parse_operator`."""
    if "=" not in operator:
        return dict.fromkeys(OPERATORS[operator].grows, OPERATORS[operator])
    pairs = (pair.split("=") for pair in operator.split(", "))
    return {part: OPERATORS[name] for part, name in pairs}


def is_trained(operator: str) -> bool:
    """Whether the growth needs training data or a training loop."""
    return any(one.trains for one in each_operator(operator))


def width_operator(operator: str, part: str) -> str:
    """The width operator of a part; where none is named, one that changes nothing."""
    chosen = operators_of(operator).get(part)
    return chosen.name if chosen and chosen.name in WIDTH_OPERATORS else "zero_pad"


@lru_cache(maxsize=4096)
def complete_options(source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions) -> GrowthOptions:
    """The options with defaults that follow from the depths."""
    for one in each_operator(operator):
        if one.name in DEPTH_OPERATORS:
            options = DEPTH_OPERATORS[one.name].completed(
                source.num_layers, target.num_layers, options, _period(source)
            )
    return options


# Cached: ten thousand trials of a sweep name a few operators.
@lru_cache(maxsize=1024)
def each_operator(operator: str) -> tuple[Operator, ...]:
    """The operators of a growth, each one once."""
    return tuple({one.name: one for one in operators_of(operator).values()}.values())


def layer_origins(
    source: ModelShape, target: ModelShape, operator: str, options: GrowthOptions
) -> tuple[LayerOrigin, ...]:
    """The origin of each layer of the target; where the depth does not grow, the layer in the same place."""
    named = operators_of(operator).get("num_layers")
    if named is None:
        return tuple(LayerOrigin(layer) for layer in range(target.num_layers))
    chosen = DEPTH_OPERATORS[named.name]
    options = chosen.completed(source.num_layers, target.num_layers, options, _period(source))
    return chosen.origins(source.num_layers, target.num_layers, options, _period(source))


def _period(source: ModelShape) -> int:
    """After how many layers the kinds of layers repeat."""
    windows = family_of(source.family).windows
    return windows.every if windows and not source.layer_kinds else 1
