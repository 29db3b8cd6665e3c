"""The objective section: what a stage learns, with the options of every objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from raystage.config.section import Section
from raystage.config.types import COUNT, MOST_WORDS, Positive, PositiveShare, Reference, Share, Text
from raystage.objectives.table import CAUSAL_LM, OBJECTIVES
from raystage.units import parse_count, parse_real, shown

ALL_TOKENS = "none"


def parse_top_k(value: object) -> int | str:
    """A number of tokens, or "none" for all. Raises ValueError."""
    if value == ALL_TOKENS:
        return ALL_TOKENS
    try:
        count = parse_count(value)
    except ValueError:
        count = 0
    if not 0 < count <= MOST_WORDS:
        problem = f"found {shown(value)}; expected a whole number from 1 to {MOST_WORDS:,}"
        raise ValueError(f"{problem}, or {ALL_TOKENS} for all tokens")
    return count


_TOP_K_SCHEMA = {
    "anyOf": [
        {"type": ["integer", "string"], "minimum": 1, "maximum": MOST_WORDS, "pattern": COUNT},
        {"const": ALL_TOKENS},
    ]
}
TopK = Annotated[int | str, PlainValidator(parse_top_k), WithJsonSchema(_TOP_K_SCHEMA)]


MOST_TEACHERS = 16


def parse_teacher(value: object) -> str | tuple[str, ...]:
    """A model's name, or a list of several. Raises ValueError."""
    names = value if isinstance(value, list | tuple) else [value]
    whole = all(isinstance(name, str) and 0 < len(name) <= 4_096 for name in names)
    is_list = isinstance(value, list | tuple)
    if not whole or (is_list and not 2 <= len(set(names)) == len(names) <= MOST_TEACHERS):
        raise ValueError(f"found {shown(value)}; expected a model, or a list of 2 to {MOST_TEACHERS} different ones")
    return tuple(names) if is_list else value


_NAME_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 4_096}
_TEACHER_SCHEMA = {
    "anyOf": [
        _NAME_SCHEMA,
        {"type": "array", "items": _NAME_SCHEMA, "minItems": 2, "maxItems": MOST_TEACHERS, "uniqueItems": True},
    ]
}
Teacher = Annotated[str | tuple[str, ...], PlainValidator(parse_teacher), WithJsonSchema(_TEACHER_SCHEMA)]

Smoothing = Annotated[float, BeforeValidator(parse_real), Field(ge=0, lt=1)]


class ObjectiveSection(Section):
    """What a stage learns. Every option belongs to one objective."""

    name: Literal[tuple(OBJECTIVES)] = CAUSAL_LM
    """`causal_lm` learns the next token, `masked_lm` tokens that are hidden (BERT), `instruct` the answers of
    conversations, `own` what a function of your own says, `distillation` what a teacher finds probable,
    `classification` the class of a text or an image, `denoising` images without their noise."""
    mask_share: Share = 0.15
    """For `masked_lm`: the share of the tokens that are targets. For `denoising`: the share of an image's patches that
    are hidden, in place of `noise`."""
    noise: Positive | None = None
    """For `denoising`: the standard deviation of the noise, where 0 is black and 1 is white; 0.3 unless this or
    `mask_share` is given."""
    label_smoothing: Smoothing = 0.0
    """For `classification`: the share of the target that all classes have in common while training (1512.00567)."""
    mask_token: Text | None = None
    """For `masked_lm`: the token that hides others. The tokenizer's own unless given; without one, a new id after its
    largest."""
    function: Annotated[Reference | None, Field(examples=["my.losses:smooth"])] = None
    """For `own`: where the loss is, `module:function` or `file.py:function`."""
    targets: Reference | None = None
    """For `own`: a function that counts the targets of a batch; every token is one unless given."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For `own`: keyword arguments that both functions are called with."""
    teacher: Annotated[Teacher | None, Field(examples=["small"])] = None
    """For `distillation`: the model to learn from. An earlier stage by its name, a Hugging Face folder or name, a
    checkpoint, a stage's folder in a store, or RUN/STAGE or a key of a stage in the store of the command. From a list
    of several it learns the mean of their probabilities."""
    temperature: Positive = 1.0
    """For `distillation`: what the scores of teacher and student are divided by before they are compared."""
    alpha: PositiveShare = 0.5
    """For `distillation`: the weight of the teacher in the loss. The next token has the rest."""
    top_k: TopK = 64
    """For `distillation`: how many of the teacher's most probable tokens are compared one by one; the others are
    compared as one. `none` compares all one by one."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """All of them."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    def taught_by(self, names: Sequence[str]) -> ObjectiveSection:
        """The section with other names of the same teachers."""
        return self.model_copy(update={"teacher": names[0] if isinstance(self.teacher, str) else tuple(names)})

    def overlaid(self, other: ObjectiveSection) -> ObjectiveSection:
        """A stage that names an objective says all of it; the file's options do not reach into another objective."""
        return other if "name" in other.model_fields_set else super().overlaid(other)


# One object for all who do not write it: pydantic copies a default with a mapping in it for each of them.
STANDARD = ObjectiveSection()


def standard_objective() -> ObjectiveSection:
    """What is learned where nobody says it: the next token."""
    return STANDARD


def _as_section(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


ObjectiveEntry = Annotated[
    ObjectiveSection,
    BeforeValidator(_as_section, json_schema_input_type=Literal[tuple(OBJECTIVES)] | ObjectiveSection),
]
