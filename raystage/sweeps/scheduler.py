"""What the user writes to end the worst trials of a sweep early."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raystage.config.section import Section
from raystage.config.types import Count
from raystage.units import SAMPLES, TOKENS, UNITS, Unit


class Extent(Section):
    """A length of training: one of these, or a plain number of tokens."""

    tokens: Count | None = None
    """The length in tokens."""
    samples: Count | None = None
    """The length in samples, for objectives that count samples."""
    flops: Count | None = None
    """The length in training FLOPs."""

    @property
    def axis(self) -> str:
        """What it counts in: "tokens", "samples" or "flops"."""
        return _given(self, "tokens", "samples", "flops")[0]

    @property
    def count(self) -> int:
        return getattr(self, self.axis)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_one(self, "tokens", "samples", "flops")
        return self


def _given(section: Section, *names: str) -> list[str]:
    return [name for name in names if getattr(section, name) is not None]


def _check_one(section: Section, *names: str) -> None:
    given = _given(section, *names)
    if len(given) != 1:
        found = " and ".join(given) or "nothing"
        raise ValueError(f"found {found}; expected exactly one of {', '.join(names)}")


def _as_extent(value: object) -> object:
    return {"tokens": value} if isinstance(value, (str, int, float)) else value


ExtentEntry = Annotated[Extent, BeforeValidator(_as_extent, json_schema_input_type=Count | Extent)]


class AfterGrowth(Section):
    """After a growth every branch trains for a while; the best `keep` of them continue (LAG, 2406.02469)."""

    tokens: Count | None = None
    """The tokens that each branch trains before it is judged."""
    samples: Count | None = None
    """The samples that each branch trains before it is judged, for objectives that count samples."""
    keep: Annotated[Count, Field(examples=["2"])]
    """The number of branches that continue."""

    @property
    def unit(self) -> Unit:
        return TOKENS if self.samples is None else SAMPLES

    @property
    def count(self) -> int:
        """The length in `unit`."""
        return self.tokens if self.samples is None else self.samples

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_one(self, *UNITS)
        return self


class Scheduler(Section):
    """Which trials end early."""

    name: Literal["none", "asha", "lag"] = "none"
    """`asha` (of Ray Tune) ends the worst trials at each rung, `lag` those with the worst loss some time
    after a growth."""
    grace: ExtentEntry | None = None
    """The first rung of `asha`."""
    reduction_factor: Annotated[float, Field(gt=1)] | None = None
    """How much further each rung of `asha` is than the one before; 3 unless given."""
    after_growth: AfterGrowth | None = None
    """When `lag` judges the branches after a growth, and how many continue."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        takes = {"none": (), "asha": ("grace", "reduction_factor"), "lag": ("after_growth",)}[self.name]
        for field in ("grace", "reduction_factor", "after_growth"):
            if getattr(self, field) is not None and field not in takes:
                owner = "lag" if field == "after_growth" else "asha"
                raise ValueError(f"found {field} with name: {self.name}; expected it with name: {owner} alone")
        needed = {"none": None, "asha": "grace", "lag": "after_growth"}[self.name]
        if needed and getattr(self, needed) is None:
            example = {"grace": "grace: 250K", "after_growth": "after_growth: {tokens: 50K, keep: 2}"}[needed]
            raise ValueError(f"found no {needed}, which {self.name} needs; expected for example {example}")
        return self
