"""How the text of a stage is read: what its windows keep apart, and in which order its documents come."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raystage.config.section import Section, read_section
from raystage.config.types import Count, Position, PositiveShare, Text
from raystage.data.order.curriculum import LENGTH
from raystage.units import shown


class Window(Section):
    """The windows that a text is read in: its documents packed one after the other, in pieces of the context length."""

    mask: Literal["none", "document"] = "none"
    """What attention and loss keep apart within a window: nothing, or each `document`. With `document`, positions start
    anew at every document, no token attends to another document, and none has to predict the next document's first
    token."""


class Score(Section):
    """What documents are sorted by, where it is not their length."""

    column: Annotated[Text | None, Field(examples=["quality"])] = None
    """A column of numbers beside the text, for sources with rows. Dots lead into nested fields."""
    loss: Annotated[Text | None, Field(examples=["small"])] = None
    """An earlier stage: the mean loss per token that its model gives a document."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.column is None) == (self.loss is None):
            found = "neither column nor loss" if self.column is None else "column beside loss"
            raise ValueError(f"found {found}; expected one of them")
        return self


def _as_score(value: object) -> object:
    if isinstance(value, dict):
        return read_section(Score, value)
    if isinstance(value, Score) or value == LENGTH:
        return value
    others = "a column of numbers such as {column: quality}, or the loss under an earlier stage such as {loss: small}"
    raise ValueError(f"found {shown(value)}; expected {LENGTH}, {others}")


By = Annotated[Literal["length"] | Score, BeforeValidator(_as_score, json_schema_input_type=Literal["length"] | Score)]


class Curriculum(Section):
    """The documents of a text in the order of a score. A stage reads the first share of them, which grows to all."""

    by: By = LENGTH
    """What documents are sorted by: `length` in tokens, `{column: NAME}`, or `{loss: STAGE}`."""
    first: Literal["easy", "hard"] = Field("easy", alias="from")
    """Which documents come first: `easy` those with the lowest scores, `hard` those with the highest."""
    start: PositiveShare = 0.2
    """The share of the text that is read at the start of the stage."""
    pacing: Literal["linear", "sqrt", "step"] = "sqrt"
    """How the share grows: in a straight line, with the square root of the progress (1903.09848), or in `levels`."""
    levels: Count | None = None
    """The number of equal steps up to the whole text, for the pacing `step`; 4 unless given."""
    over: Position = 0.5
    """When all of the text is read: up to 1 a fraction of the stage, above 1 a number of tokens from its start."""

    @model_validator(mode="after")
    def _has_levels_for_step(self) -> Self:
        if self.levels is not None and self.pacing != "step":
            raise ValueError(f"found levels with pacing: {self.pacing}; expected pacing: step beside them")
        if not self.over:
            raise ValueError("found over: 0; expected a fraction of the stage, such as 0.5, or tokens")
        return self
