"""A finished model of a stage's size beside the run, as written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raystage.config.section import Section
from raystage.config.types import Fraction, Position
from raystage.units import shown


class Deliver(Section):
    """A finished model of the stage's size: its rate decays on a branch of the run, and the weights are exported.

    The next stage goes on from the stage's end, before the decay. A stage whose rate has decayed where it ends is
    delivered as it is. `true` is a section with the values below.
    """

    decay: Position = Field(0.1, examples=["0.2"])
    """The length of the decay: up to 1 a fraction of what the run has trained until then, above 1 tokens or samples. 0
    delivers the model without a decay."""
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    """The shape of the decay. `1-sqrt` falls fast at first (2405.18392)."""
    min_lr_ratio: Fraction = 0.0
    """The last rate, as a fraction of the rate where the decay begins."""


def as_deliver(value: object) -> object:
    """`true` for a section with its defaults, `false` for none. Raises ValueError."""
    if isinstance(value, bool):
        return Deliver() if value else None
    if value is None or isinstance(value, (dict, Deliver)):
        return value
    raise ValueError(f"found {shown(value)}; expected true, or a section such as {{decay: 0.2}}")
