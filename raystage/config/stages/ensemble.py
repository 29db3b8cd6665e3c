"""Several members of a stage, as written."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raystage.config import yaml_file
from raystage.config.section import Section
from raystage.config.types import Count, Flag
from raystage.units import shown

MOST_MEMBERS = 32
# What a member keeps of its stage, or has no use for.
_KEPT = ("name", "ensemble", "deliver", "accept", "on_reject")


def member_name(stage: str, number: int) -> str:
    """The name of a member. number: from 1, which is the stage itself."""
    return stage if number == 1 else f"{stage}-member-{number}"


def _check_keys(changes: dict[str, object]) -> dict[str, object]:
    """What members change, by dotted key of the stage. Raises ValueError."""
    for key in changes:
        path = yaml_file.parse_path(key)
        if not path:
            raise ValueError(f"found the key {shown(key)}; expected one of a stage such as training.optimizer.lr")
        if path[0] in _KEPT:
            raise ValueError(f"found {key}; every member keeps that of the stage")
    return changes


class EnsembleSection(Section):
    """Several members of the stage: models that begin as the stage does and are trained in different ways.

    The first member is the stage itself, with which the next stage continues. The others are branches of the run.
    """

    members: Annotated[Count, Field(ge=2, le=MOST_MEMBERS, examples=["4"])]
    """How many members there are, with the stage itself."""
    vary: Literal["seed", "data", "schedule"] = "seed"
    """What differs: `seed` the seed, which goes up by one from member to member, and with it new weights and the order
    of the text; `data` the order alone; `schedule` what `set` says."""
    set: Annotated[dict[str, Any], AfterValidator(_check_keys)] = Field(default_factory=dict)
    """For `schedule`: the values that differ, by dotted key of the stage. A list has one value for each member after
    the first. A relative value in quotes, such as `"*0.5"`, is applied once more with every member."""
    combine: Literal["mean"] = "mean"
    """How the members answer together: by the mean of their probabilities, or of the images that they make."""
    measure: Flag = True
    """Whether the ensemble is measured as soon as all members are trained. The machine of the driver then holds all of
    them in memory. `raystage ensemble` measures it later."""

    @model_validator(mode="after")
    def _says_what_differs(self) -> Self:
        if self.vary == "schedule" and not self.set:
            expected = 'expected for example set: {training.optimizer.lr: "*0.5"}'
            raise ValueError(f"found vary: schedule without set; {expected}")
        if self.vary != "schedule" and self.set:
            raise ValueError(f"found set with vary: {self.vary}; expected vary: schedule beside it")
        further = self.members - 1
        for key, value in self.set.items():
            if isinstance(value, list) and len(value) != further:
                found = f"found {len(value)} value{'' if len(value) == 1 else 's'} of {key} for {self.members} members"
                raise ValueError(f"{found}; expected {further}: one for each member after the first")
        return self
