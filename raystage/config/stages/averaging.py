"""The average of a stage's last checkpoints, as written."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raystage.config.section import Section
from raystage.config.types import Count

MOST_CHECKPOINTS = 64


class Average(Section):
    """The model that a stage ends with: an average of its last checkpoints, in place of the last one (2507.17634).

    Where the held-out loss of the average is no lower than that of the last checkpoint, the stage ends with the last
    checkpoint.
    """

    last: Annotated[Count, Field(ge=2, le=MOST_CHECKPOINTS)] = 4
    """How many checkpoints are averaged: the one at the stage's end, and those before it."""
    every: Annotated[Count, Field(examples=["1M"])]
    """The distance between these checkpoints in tokens or samples, counted from the stage's start."""
    weights: Literal["uniform", "wsm"] = "uniform"
    """What each checkpoint counts: `uniform` all the same; `wsm` as much as makes the average stand for a decay of the
    rate over the checkpoints, in the shape of `decay_shape`."""
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """The shape of that decay, for `wsm`."""

    @model_validator(mode="after")
    def _has_a_shape_for_wsm(self) -> Self:
        if self.weights != "wsm" and "decay_shape" in self.model_fields_set:
            raise ValueError(f"found decay_shape with weights: {self.weights}; expected weights: wsm beside it")
        return self
