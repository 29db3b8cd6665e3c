"""Conditions as written in a stage: when it ends, whether it is accepted, what happens if not.

`planning.length` and `results.stopping` decide when a stage ends; `results.acceptance` and `plans.gates` handle the
gates.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_serializer, model_validator

from raystage.config import yaml_file
from raystage.config.section import Section
from raystage.config.types import (
    Attempts,
    Count,
    Duration,
    Name,
    Negative,
    NotNegative,
    Positive,
    PositiveShare,
    Real,
    Seconds,
    Share,
    Text,
)
from raystage.units import kind_of, parse_count, parse_real, shown


class Plateau(Section):
    """The held-out loss gained less than `min_delta` over `patience` evaluations."""

    min_delta: Annotated[Positive, Field(examples=["0.01"])]
    """The smallest gain that counts, in nats per token."""
    patience: Annotated[Count, Field(examples=["3"])]
    """The number of evaluations."""


class Slope(Section):
    """The slope of log10 loss over log10 FLOPs was above `tau` for `hits` evaluations in a row (2203.06211)."""

    tau: Annotated[Negative, Field(examples=["-0.0575"])]
    """The slope, below 0."""
    hits: Count = 2
    """The number of evaluations in a row."""


class Mixing(Section):
    """A length that leaves a grown model `tokens` to catch up before a run of `of` tokens decays (2511.04981)."""

    tokens: Annotated[Count, Field(examples=["120K"])]
    """The tokens that a grown model needs to catch up."""
    of: Annotated[Count, Field(examples=["2M"])]
    """The tokens of the whole run."""


class Until(Section):
    """When a stage ends: as soon as one of these conditions holds. All count from the stage's start.

    `seconds`, `eval_loss`, `plateau` and `slope` need a fixed length beside them: the most that the stage may take.
    """

    tokens: Count | None = None
    """Tokens of training."""
    samples: Count | None = None
    """Samples of training, for objectives that count samples."""
    epochs: Annotated[Positive | None, Field(examples=["3"])] = None
    """Passes over the training data of the stage: of samples, and of text with `tokenizer: bytes` or `source: tokens`.
    The plan turns them into samples or tokens. The tokens of other text are not known before it is tokenized."""
    share: Annotated[PositiveShare | None, Field(examples=["0.35"])] = None
    """The share of the run's `length` that the stage takes. The plan turns it into tokens."""
    steps: Count | None = None
    """Optimizer steps."""
    flops: Count | None = None
    """Training FLOPs."""
    seconds: Seconds | None = None
    """Time of training, in seconds or as `2h`."""
    eval_loss: Positive | None = None
    """A held-out loss, in nats per token or as the objective measures it; the stage ends at or below it."""
    plateau: Plateau | None = None
    """The held-out loss no longer falls."""
    slope: Slope | None = None
    """The held-out loss falls more slowly."""
    mixing: Mixing | None = None
    """So early that a grown model can catch up."""
    any: Annotated[tuple[Until, ...], Field(min_length=1)] | None = None
    """Conditions of which one has to hold."""
    all: Annotated[tuple[Until, ...], Field(min_length=1)] | None = None
    """Conditions that all have to hold."""

    @model_validator(mode="after")
    def _says_something(self) -> Until:
        if not any(value is not None for value in vars(self).values()):
            raise ValueError(f"found nothing; expected one or more of {', '.join(Until.model_fields)}")
        return self

    @property
    def given(self) -> dict[str, object]:
        """The conditions that are written down, by key."""
        return {name: value for name in Until.model_fields if (value := getattr(self, name)) is not None}


class Overfitting(Section):
    """Rejects a stage whose held-out loss rose over each of its last evaluations while its training loss fell."""

    evaluations: Annotated[Count, Field(examples=["3"])]
    """The number of evaluations."""


class Bounds(Section):
    """Where a metric must end: above a value, below a value, or between two."""

    above: Real | None = None
    """The value must be above this."""
    below: Real | None = None
    """The value must be below this."""

    @model_validator(mode="after")
    def _asks_something(self) -> Bounds:
        if self.above is None and self.below is None:
            raise ValueError("found nothing; expected above, below or both")
        return self


class Forgetting(Section):
    """How much a stage may forget: the loss on a source at its end, against that at its start."""

    source: Annotated[Name, Field(examples=["web"])]
    """The name of a source of a mixture, of this stage or of an earlier one."""
    by: Annotated[NotNegative, Field(examples=["0.02"])]
    """The most that the loss on it may rise, in nats per token."""


# The conditions of `Accept` that a growth's certificate decides. `grow.require` has some of them, too.
OF_GROWTH = ("loss_increase_below", "max_logit_difference_below", "gradient_error_below", "twin_distance_above")


class Accept(Section):
    """What a finished stage must show to be accepted: all of these."""

    eval_loss_below: Positive | None = None
    """The held-out loss at the end, in nats per token or as the objective measures it."""
    accuracy_above: Share | None = None
    """The share of held-out tokens, or of samples, that the model predicts at the end."""
    loss_increase_below: Positive | None = None
    """The increase of the held-out loss by the stage's growth, in nats per token."""
    max_logit_difference_below: Positive | None = None
    """The largest absolute difference of a logit before and after the growth."""
    gradient_error_below: Positive | None = None
    """The largest relative difference between the gradient that the growth predicts and the real one."""
    twin_distance_above: NotNegative | None = None
    """The smallest relative distance between copies that the growth made, some steps after it."""
    overfitting: Overfitting | None = None
    """Rejects a stage that overfits."""
    forgetting_below: Forgetting | None = None
    """The most that the loss on a source may rise in the stage; a source of an earlier stage is evaluated for it."""
    metrics: dict[str, Bounds] | None = None
    """By name the bounds of metrics of `training.evaluate.metrics` at the end."""

    @model_validator(mode="after")
    def _asks_something(self) -> Accept:
        if not self.given:
            raise ValueError(f"found nothing; expected one or more of {', '.join(Accept.model_fields)}")
        return self

    @property
    def given(self) -> dict[str, object]:
        """The conditions that are written down, by key."""
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
    """What an attempt changes, by dotted key of a stage. Raises ValueError."""
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
    times: Attempts = 1
    """How many times at most."""
    set: Changes = Field(default_factory=dict)
    """The values that change, by dotted key of the stage. A relative value in quotes, such as `"*0.5"` or `"+1"`, is
    applied once more with every attempt."""

    @model_validator(mode="after")
    def _differs_every_time(self) -> _Again:
        if self.times > 1 and not any(parse_relative(value) for value in self.set.values()):
            problem = f"found times: {self.times} with nothing but plain values, so that every attempt after the first"
            raise ValueError(f'{problem} would be the same again; expected a relative one such as "*0.5", or times: 1')
        return self


class Retry(_Again):
    """Train the stage again, with other values."""


class Rewind(_Again):
    """Go back to an earlier stage, train it with other values, and train all stages after it again."""

    to: Annotated[Text, Field(examples=["small"])]
    """The name of the stage to go back to."""


class Extend(Duration):
    """Continue the stage. The length is added each time."""

    times: Attempts = 1
    """How many times at most."""


def _or_abort(schema: dict[str, Any]) -> None:
    """The JSON schema of OnReject: the word abort, or the mapping."""
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"const": "abort"}, mapping]


class OnReject(Section):
    """What happens to a stage that is not accepted: one of these, or `abort`: the run stops."""

    model_config = ConfigDict(json_schema_extra=_or_abort)

    retry: Retry | None = None
    """Train the stage again, with other values."""
    extend: Extend | None = None
    """Continue the stage."""
    rewind: Rewind | None = None
    """Go back to an earlier stage."""

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
