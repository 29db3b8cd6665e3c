"""A length of training as written: in the unit that the stage's objective counts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raystage.config.section import Section
from raystage.config.types import Count


class Duration(Section):
    """A length of training, in the unit that the stage counts."""

    tokens: Annotated[Count | None, Field(examples=["50K"])] = None
    """The length in tokens."""
    samples: Annotated[Count | None, Field(examples=["5K"])] = None
    """The length in samples, for objectives that count samples."""

    @property
    def count(self) -> int:
        """In the stage's unit."""
        return self.tokens if self.samples is None else self.samples
