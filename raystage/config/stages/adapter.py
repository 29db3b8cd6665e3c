"""What is trained in place of a model's own parameters: the section `adapter`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystage.config.section import Section
from raystage.config.stages.freeze import Patterns
from raystage.config.types import Beta, Positive, Units


class Lora(Section):
    """Two small matrices beside each of some matrices, whose product is added to it: `alpha / rank * B @ A`
    (2106.09685). The matrices themselves are not trained."""

    rank: Annotated[Units, Field(examples=["16"])]
    """The inner size of the product."""
    alpha: Positive | None = None
    """The product counts `alpha / rank` times; `alpha` is twice the rank unless given."""
    dropout: Beta = 0.0
    """The share of the inputs of `A` that is set to zero at random in training."""
    modules: Patterns = Field((), alias="on")
    """The matrices, by the ends of their modules' names, such as `q_proj`, or by patterns of the names, such as
    `*.self_attn.*`; all matrices of the layers unless given (2305.14314)."""
    in_full: Patterns = Field((), alias="train")
    """Patterns of the names of parameters that are trained as they are, such as `model.norm.*`. A head that the stage
    puts on always is."""


class Adapter(Section):
    """A few new parameters that are trained in place of the model's own."""

    lora: Annotated[Lora, Field(examples=["{rank: 16, on: [q_proj, v_proj]}"])]
    """Low-rank adaptation."""
    keep: Literal["merged", "beside"] = "merged"
    """The stage ends with the adapter merged into the weights. `beside` also keeps it apart, as files of `peft`, which
    `raystage export` copies."""
