"""Conditions as written in a stage: when it ends, whether it is accepted, what to do where it is not.

`triggers` and `gates` say what they mean.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_serializer, model_validator

from raystage.config import yaml_file
from raystage.config.section import Section
from raystage.config.types import Attempts, Count, Negative, NotNegative, Positive, Real, Seconds, Share, Text
from raystage.units import kind_of, parse_count, parse_real, shown


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


class Overfitting(Section):
    """The held-out loss rose over each of the last `evaluations` evaluations while the training loss fell."""

    evaluations: Annotated[Count, Field(examples=["3"])]


class Bounds(Section):
    """Where a metric must end: above or below a value, or between two."""

    above: Real | None = None
    below: Real | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Bounds:
        if self.above is None and self.below is None:
            raise ValueError("found nothing; expected above, below or both")
        return self


# The conditions of `Accept` that a growth's certificate decides. `grow.require` has some of them, too.
OF_GROWTH = ("loss_increase_below", "max_logit_difference_below", "gradient_error_below", "twin_distance_above")


class Accept(Section):
    """What a finished stage must show, all of it, to be gone on with.

    From loss_increase_below to twin_distance_above: what the certificate of its growth must. metrics: by name, those of
    training.evaluate.metrics at its end.
    """

    eval_loss_below: Positive | None = None
    accuracy_above: Share | None = None
    loss_increase_below: Positive | None = None
    max_logit_difference_below: Positive | None = None
    gradient_error_below: Positive | None = None
    twin_distance_above: NotNegative | None = None
    overfitting: Overfitting | None = None
    metrics: dict[str, Bounds] | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Accept:
        if not self.given:
            raise ValueError(f"found nothing; expected one or more of {', '.join(Accept.model_fields)}")
        return self

    @property
    def given(self) -> dict[str, object]:
        """What is written down, by key."""
        return {name: value for name in Accept.model_fields if (value := getattr(self, name)) is not None}

    @property
    def of_growth(self) -> list[str]:
        """The conditions on a growth that are written down."""
        return [name for name in OF_GROWTH if name in self.given]


def parse_relative(value: object) -> tuple[str, Decimal] | None:
    """('*', 0.5) of "*0.5", ('+', 200000) of "+200K", ('+', -1) of "-1"; None of a plain value."""
    match = re.fullmatch(r"\s*([*+-])\s*([\d.].*)", value) if isinstance(value, str) else None
    if match is None:
        return None
    sign, text = match.groups()
    try:
        amount = Decimal(str(parse_real(text)))
    except ValueError:
        try:
            amount = Decimal(parse_count(text))
        except ValueError:
            return None
    return ("*", amount) if sign == "*" else ("+", -amount if sign == "-" else amount)


def _check_changes(changes: dict[str, object]) -> dict[str, object]:
    """What another attempt changes, by dotted key of a stage. Raises ValueError."""
    if not changes:
        problem = "missing, so that another attempt would be the same again"
        raise ValueError(f'{problem}; expected for example {{training.optimizer.lr: "*0.5"}}')
    for key in changes:
        path = yaml_file.parse_path(key)
        if not path:
            raise ValueError(f"found the key {shown(key)}; expected one of a stage such as training.optimizer.lr")
        if path[0] in ("name", "accept", "on_reject"):
            raise ValueError(f"found {key}; another attempt keeps the stage's name and gates")
    return changes


Changes = Annotated[dict[str, Any], AfterValidator(_check_changes), Field(validate_default=True)]


class _Again(Section):
    """times: how many attempts after the first. set: what they change, by dotted key of the stage.

    A relative value ("*0.5", "+1", "-1") is applied once more with every attempt.
    """

    times: Attempts = 1
    set: Changes = Field(default_factory=dict)

    @model_validator(mode="after")
    def _differs_every_time(self) -> _Again:
        if self.times > 1 and not any(parse_relative(value) for value in self.set.values()):
            problem = f"found times: {self.times} with nothing but plain values, so that every attempt after the first"
            raise ValueError(f'{problem} would be the same again; expected a relative one such as "*0.5", or times: 1')
        return self


class Retry(_Again):
    """Train the stage once more, with other values."""


class Rewind(_Again):
    """Go back to the stage named `to`, train it with other values, and come up from there again."""

    to: Annotated[Text, Field(examples=["small"])]


class Extend(Section):
    """Go on with the stage for `tokens` more, at most `times` times."""

    tokens: Annotated[Count, Field(examples=["200K"])]
    times: Attempts = 1


class OnReject(Section):
    """What to do with a stage that is not accepted: one of these; none of them is `abort`."""

    retry: Retry | None = None
    extend: Extend | None = None
    rewind: Rewind | None = None

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, written: object) -> object:
        if written == "abort":
            return {}
        if not isinstance(written, dict) or all(value is None for value in written.values()):
            expected = "expected abort, or a mapping with one of retry, extend, rewind"
            raise ValueError(f"found {shown(written) if isinstance(written, str) else kind_of(written)}; {expected}")
        return written

    @model_validator(mode="after")
    def _says_one_thing(self) -> OnReject:
        given = [name for name in OnReject.model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"found {' and '.join(given)}; expected one of them")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, fields: Any) -> object:
        return "abort" if self.aborts else fields(self)

    @property
    def aborts(self) -> bool:
        return self.retry is None and self.extend is None and self.rewind is None
