"""Conditions as written in a stage: when it ends. `triggers` says what they mean."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raystage.section import Section
from raystage.values import Count, Negative, Positive, Seconds


class Plateau(Section):
    """No gain of `min_delta` nats per token in the held-out loss over `patience` evaluations."""

    min_delta: Annotated[Positive, Field(examples=["0.01"])]
    patience: Annotated[Count, Field(examples=["3"])]


class Slope(Section):
    """The slope of log10 loss over log10 FLOPs was above `tau` for `hits` evaluations in a row (2203.06211)."""

    tau: Annotated[Negative, Field(examples=["-0.0575"])]
    hits: Count = 2


class Mixing(Section):
    """So early that a grown model has `tokens` to catch up before a run of `of` tokens decays (2511.04981)."""

    tokens: Annotated[Count, Field(examples=["120K"])]
    of: Annotated[Count, Field(examples=["2M"])]


class Until(Section):
    """When a stage ends: as soon as one of these is the case.

    tokens, steps, flops and seconds are counted from the stage's start, seconds of training. eval_loss: at or below.
    """

    tokens: Count | None = None
    steps: Count | None = None
    flops: Count | None = None
    seconds: Seconds | None = None
    eval_loss: Positive | None = None
    plateau: Plateau | None = None
    slope: Slope | None = None
    mixing: Mixing | None = None
    any: Annotated[tuple[Until, ...], Field(min_length=1)] | None = None
    all: Annotated[tuple[Until, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Until:
        if not self.given:
            raise ValueError(f"found nothing; expected one or more of {', '.join(Until.model_fields)}")
        return self

    @property
    def given(self) -> dict[str, object]:
        """What is written down, by key."""
        return {name: value for name in Until.model_fields if (value := getattr(self, name)) is not None}
