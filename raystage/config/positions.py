"""The section `model.rope_scaling`: how rotary positions are scaled for contexts longer than those of before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from raystage.config.section import Section
from raystage.config.types import Context, OrText, Positive
from raystage.units import parse_count, parse_real, shown

_NUMBER = r"^\s*[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][+-]?[0-9]{1,3})?\s*[KMBkmb]?\s*$"
# By kind the keys that it needs, and those that it may have.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "yarn": (("factor",), ("original_context_length", "beta_fast", "beta_slow", "attention_factor")),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_context_length",)),
    "none": ((), ()),
}
# Of two keys the second is larger: their defaults.
_RISING = {"yarn": {"beta_slow": 1.0, "beta_fast": 32.0}, "llama3": {"low_freq_factor": 0.0, "high_freq_factor": 0.0}}
_EXAMPLES = {"factor": "factor: 4", "low_freq_factor": "low_freq_factor: 1", "high_freq_factor": "high_freq_factor: 4"}


def parse_base(value: object) -> float:
    """A number such as `10000`, `5e5` or `500K`. Raises ValueError."""
    try:
        return parse_real(value)
    except ValueError:
        return float(parse_count(value))


# The base of rotary positions. At 1 all frequencies would be equal.
RopeTheta = Annotated[float, BeforeValidator(parse_base), Field(gt=1, le=1e15), OrText(_NUMBER)]
Factor = Annotated[float, BeforeValidator(parse_real), Field(ge=1, le=1e9), OrText(_NUMBER)]


class RopeScaling(Section):
    """How rotary positions are scaled. It is taken as a whole: a stage's scaling replaces the one of before."""

    kind: Annotated[Literal["yarn", "linear", "llama3", "none"], Field(examples=["yarn"])]
    """`yarn` (2309.00071), `linear` (position interpolation, 2306.15595) or `llama3` (2407.21783), as transformers
    computes them; `none` ends the scaling of the stage before."""
    factor: Factor | None = None
    """By how much positions are scaled: how many times longer the context may be."""
    original_context_length: Context | None = None
    """For `yarn` and `llama3`: the context length, in tokens, that the model was trained with before it was scaled.
    That of the scaling or of the model before unless given."""
    beta_fast: Positive | None = None
    """For `yarn`: frequencies that turn more often than this within the original context stay as they are; 32 unless
    given."""
    beta_slow: Positive | None = None
    """For `yarn`: frequencies that turn less often than this are scaled in full; 1 unless given."""
    attention_factor: Positive | None = None
    """For `yarn`: the factor on cosines and sines; `0.1 ln(factor) + 1` unless given."""
    low_freq_factor: Positive | None = None
    """For `llama3`: wavelengths longer than the original context divided by this are scaled in full."""
    high_freq_factor: Positive | None = None
    """For `llama3`: wavelengths shorter than the original context divided by this stay as they are."""

    @model_validator(mode="after")
    def _has_the_keys_of_its_kind(self) -> RopeScaling:
        needed, further = _KEYS[self.kind]
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"found {self.kind} without {name}; expected it, for example {_EXAMPLES[name]}")
        for name, value in self.given().items():
            if name not in (*needed, *further):
                takes = ", ".join((*needed, *further)) or "no other key"
                raise ValueError(f"found {name}: {shown(value)} with kind: {self.kind}; expected {takes}")
        if self.kind in _RISING:
            (low, one), (high, other) = _RISING[self.kind].items()
            least, most = getattr(self, low) or one, getattr(self, high) or other
            if least >= most:
                raise ValueError(f"found {low} {least:g} and {high} {most:g}; expected {high} to be the larger one")
        return self

    def given(self) -> dict[str, Any]:
        """The keys with a value, without the kind."""
        return {name: value for name, value in self.model_dump(exclude={"kind"}).items() if value is not None}

    @property
    def has_origin(self) -> bool:
        """Whether the kind refers to an original context length."""
        return "original_context_length" in _KEYS[self.kind][1]
