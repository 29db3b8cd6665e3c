"""What of a stage's model is not trained, and for how long: the sections `freeze` and `thaw`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raystage.config.section import Section, read_section
from raystage.config.types import Count, CountOrZero, Duration, Flag, Text
from raystage.units import parse_count, shown


class FreezeFor(Duration):
    """How long parameters are frozen, from the stage's start."""


class LayerRange(Section):
    """Layers by their depth, from 0."""

    start: CountOrZero = Field(0, alias="from")
    """The first of them."""
    below: Annotated[Count | None, Field(examples=["3"])] = None
    """The first layer above them; all layers from the first on unless given."""

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        if self.below is not None and self.below <= self.start:
            raise ValueError(
                f"found from {self.start} below {self.below}, between which no layer lies; expected a higher below"
            )
        return self


def _as_layers(value: object) -> object:
    if value is None or value in ("old", "new") or isinstance(value, LayerRange):
        return value
    if isinstance(value, dict):
        return read_section(LayerRange, value)
    if not isinstance(value, (list, tuple)) or not value:
        expected = "expected old, new, a list of layers such as [0, 1], or {below: 3}"
        raise ValueError(f"found {shown(value)}; {expected}")
    layers = tuple(parse_count(layer) for layer in value)
    if min(layers) < 0:
        raise ValueError(f"found layer {min(layers)}; expected 0 or more")
    return layers


FrozenLayers = Annotated[
    tuple[int, ...] | str | LayerRange | None,
    BeforeValidator(_as_layers, json_schema_input_type=Literal["old", "new"] | list[CountOrZero] | LayerRange | None),
]


def _as_patterns(value: object) -> object:
    if not isinstance(value, (str, list, tuple)) or not value:
        raise ValueError(f"found {shown(value)}; expected a pattern of names such as *.mlp.*, or a list of them")
    return [value] if isinstance(value, str) else value


Patterns = Annotated[tuple[Text, ...], BeforeValidator(_as_patterns, json_schema_input_type=Text | list[Text])]


class Freeze(Section):
    """Parameters that are not trained, in the whole stage or at its start. Their weights and moments do not change."""

    layers: FrozenLayers = None
    """A list of layers from 0, or `{below: 3}`, or `old` or `new`: those that the stage's growth found, or those that
    it added."""
    embeddings: Flag = False
    """Whether the embeddings are frozen. Where they are tied, that includes the head."""
    parameters: Patterns = ()
    """Patterns of the names of further parameters, such as `*.mlp.*`."""
    lasts: FreezeFor | None = Field(None, alias="for")
    """How long; the whole stage unless given."""


class Thaw(Section):
    """Frozen parameters begin to train layer by layer (1801.06146)."""

    start: Literal["top", "bottom"] = Field("top", alias="from")
    """Where it begins: at the last of the frozen layers, or below the first, at the embeddings."""
    every: Annotated[Count, Field(examples=["200K"])]
    """The distance between two layers in tokens or samples. The first begins to train after it, too."""
