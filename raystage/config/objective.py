"""The objective section: what a stage learns, with the options of every objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from raystage.config.section import Section
from raystage.config.types import Share, Text
from raystage.objectives.table import CAUSAL_LM, OBJECTIVES
from raystage.user_code import split_reference


def _check_reference(reference: str) -> str:
    split_reference(reference)
    return reference


Reference = Annotated[str, AfterValidator(_check_reference)]


class ObjectiveSection(Section):
    """What a stage learns. Every option belongs to one objective."""

    name: Literal[tuple(OBJECTIVES)] = CAUSAL_LM
    """`causal_lm` learns the next token, `masked_lm` tokens that are hidden (BERT), `instruct` the answers of
    conversations, `own` what a function of your own says."""
    mask_share: Share = 0.15
    """For `masked_lm`: the share of the tokens that are targets."""
    mask_token: Text | None = None
    """For `masked_lm`: the token that hides others. The tokenizer's own unless given; without one, a new id after its
    largest."""
    function: Annotated[Reference | None, Field(examples=["my.losses:smooth"])] = None
    """For `own`: where the loss is, `module:function` or `file.py:function`."""
    targets: Reference | None = None
    """For `own`: a function that counts the targets of a batch; every token is one unless given."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For `own`: keyword arguments that both functions are called with."""

    def overlaid(self, other: ObjectiveSection) -> ObjectiveSection:
        """A stage that names an objective says all of it; the file's options do not reach into another objective."""
        return other if "name" in other.model_fields_set else super().overlaid(other)


def _as_section(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


ObjectiveEntry = Annotated[
    ObjectiveSection,
    BeforeValidator(_as_section, json_schema_input_type=Literal[tuple(OBJECTIVES)] | ObjectiveSection),
]
