"""The sections of a stage: its data, model, training, growth and frozen parts. Every key is optional in a file.

A schedule holds `data`, `model` and `training` as defaults for all stages; a stage overrides single keys of them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from raystage.config.conditions import Accept, OnReject, Until
from raystage.config.section import Section
from raystage.config.types import (
    Beta,
    Context,
    Count,
    CountOrZero,
    Experts,
    Flag,
    Fraction,
    Heads,
    Layers,
    Name,
    NotNegative,
    Positive,
    Seconds,
    Seed,
    Share,
    Span,
    Text,
    Units,
    Words,
    WorkerCount,
    Workers,
)
from raystage.data.documents import BYTE_TOKENIZER
from raystage.growth.depth import GrowthOptions
from raystage.growth.operators import OPTIMIZER_STATE_POLICIES, parse_operator
from raystage.models.families import TRAINED
from raystage.units import parse_count, shown
from raystage.user_code import split_reference


def _as_list(value: object) -> object:
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"found {shown(value)}; expected a file or folder, or a list of them")
    return [value] if isinstance(value, str) else value


Paths = Annotated[tuple[Text, ...], BeforeValidator(_as_list)]


class Data(Section):
    """Where the text comes from and how it is read.

    files: a pattern of the names of files to read. document_separator, document_bytes: where files are cut into
    documents. validation_path: text to hold out, in place of a fraction. end_token: ends a document, in place of the
    tokenizer's own. encoding_errors: what is done about bytes that are not UTF-8.
    """

    source: Literal["python-stdlib", "text"] = "python-stdlib"
    path: Paths = ()
    files: Text | None = None
    document_separator: Text | None = None
    document_bytes: Annotated[int, BeforeValidator(parse_count), Field(ge=256)] | None = None
    tokenizer: Text = BYTE_TOKENIZER
    end_token: Text | None = None
    encoding_errors: Literal["strict", "replace"] = "strict"
    validation_fraction: Share = 0.05
    validation_path: Paths = ()

    @model_validator(mode="after")
    def _holds_out_in_one_way(self) -> Data:
        if self.validation_path and "validation_fraction" in self.model_fields_set:
            raise ValueError("found both validation_fraction and validation_path; expected one of them")
        return self


class Model(Section):
    """The model's shape, field by field; what is not given follows from the rest."""

    family: Literal[TRAINED] = "llama"
    num_layers: Layers | None = None
    hidden_size: Units | None = None
    num_heads: Heads | None = None
    num_kv_heads: Heads | None = None
    head_size: Units | None = None
    ffn_size: Units | None = None
    vocab_size: Words | None = None
    context_length: Context | None = None
    tied_embeddings: Flag | None = None
    norm_eps: Positive | None = None
    num_experts: Experts | None = None
    experts_per_token: Experts | None = None


class Optimizer(Section):
    """betas and eps are for adamw and adam, momentum for sgd."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    betas: Annotated[tuple[Beta, ...], Field(min_length=2, max_length=2)] = (0.9, 0.95)
    eps: Positive = 1e-8
    momentum: Beta = 0.9
    weight_decay: NotNegative = 0.1

    @property
    def unused(self) -> tuple[str, ...]:
        """The keys that count for other optimizers only."""
        return ("betas", "eps") if self.name == "sgd" else ("momentum",)

    @property
    def moments(self) -> tuple[str, ...]:
        """What it keeps for every parameter besides the weight, under torch's names."""
        if self.name == "sgd":
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg", "exp_avg_sq")

    def used(self) -> dict[str, Any]:
        """All that decides what it does, as plain values."""
        return self.model_dump(exclude=set(self.unused))


class LrSchedule(Section):
    """warmup and decay: below 1 a fraction of the whole, above 1 tokens. decay is for wsd alone."""

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: Span = 0.0
    decay: Span = 0.2
    min_lr_ratio: Fraction = 0.0


def _check_reference(reference: str) -> str:
    split_reference(reference)
    return reference


def _as_metric(value: object) -> object:
    return {"function": value} if isinstance(value, str) else value


class Metric(Section):
    """A function of the user's own over held-out answers (`metrics` says how it is called), with what else it takes."""

    function: Annotated[str, AfterValidator(_check_reference), Field(examples=["my.metrics:exact_match"])]
    options: dict[str, Any] = Field(default_factory=dict)


class Evaluate(Section):
    """metrics: no stage's result depends on them, and so no stage's key."""

    every: Count | None = None
    tokens: Count = 65_536
    metrics: tuple[Annotated[Metric, BeforeValidator(_as_metric)], ...] = ()


class Checkpointing(Section):
    """keep_last, keep_best: how many of a stage's checkpoints stay, the furthest and those of lowest loss.

    background: write them while the training goes on, from a copy in host memory. It changes no bit.
    """

    every: Count | None = None
    keep_last: Count = 2
    keep_best: CountOrZero = 0
    background: Flag = True


class RampOver(Section):
    tokens: Annotated[Count, Field(examples=["200K"])]


class RampOf(Section):
    """A value that doubles from `from` up to the stage's own, in equal shares of the tokens that it takes."""

    start: Annotated[Count, Field(alias="from", examples=["1024"])]
    over: Annotated[RampOver, Field(examples=["{tokens: 200K}"])]


class Ramp(Section):
    """What of a stage's training grows while it trains."""

    global_batch_tokens: RampOf | None = None
    context_length: RampOf | None = None


class Training(Section):
    workers: WorkerCount = Workers.exactly(1)
    cpus_per_worker: Count = 1
    gpus_per_worker: CountOrZero = 0
    zero_stage: Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=3)] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    offload_optimizer: Literal["none", "cpu"] = "none"
    global_batch_tokens: Count | None = None
    micro_batch_size: Count | None = None
    ramp: Ramp | None = None
    gradient_clipping: NotNegative = 1.0
    activation_checkpointing: Flag = False
    optimizer: Annotated[Optimizer, Field(examples=["{name: adamw, lr: 1e-3}"])] = Optimizer()
    lr_schedule: Annotated[LrSchedule, Field(examples=["{kind: wsd, warmup: 0.02, decay: 0.2}"])] = LrSchedule()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpointing = Checkpointing()
    max_failures: CountOrZero = 3
    hang_seconds: Seconds = 1800.0
    deepspeed: dict[str, Any] = Field(default_factory=dict)


class Rewarm(Section):
    """New parameters alone: from no rate to `factor` times the others' over `tokens`, to just theirs over as many."""

    factor: Positive = 1.3
    tokens: Annotated[Count, Field(examples=["50K"])]


class Require(Section):
    """What a growth's certificate must show; otherwise the run stops there."""

    loss_increase_below: Positive | None = None
    max_logit_difference_below: Positive | None = None
    gradient_error_below: Positive | None = None


NOTHING_REQUIRED = Require()


class Grow(Section):
    """How a stage's model comes from the one before: one operator, or one for each part that grows.

    layers, block, grow_tokens and fit_steps are for the operators that take them.
    """

    operator: Annotated[str, BeforeValidator(parse_operator), Field(examples=["stack"])]
    optimizer_state: Literal[OPTIMIZER_STATE_POLICIES] = "grow"
    rewarm: Rewarm | None = None
    layers: Annotated[tuple[CountOrZero, ...], Field(min_length=1)] | None = None
    block: Count | None = None
    grow_tokens: Count | None = None
    fit_steps: Count | None = None
    require: Require = NOTHING_REQUIRED

    @property
    def options(self) -> GrowthOptions:
        return GrowthOptions(self.layers, self.block, self.grow_tokens, self.fit_steps)


class FreezeFor(Section):
    tokens: Annotated[Count, Field(examples=["1M"])]


def _as_layers(value: object) -> object:
    if value is None or value in ("old", "new"):
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"found {shown(value)}; expected old, new or a list of layers such as [0, 1]")
    layers = tuple(parse_count(layer) for layer in value)
    if min(layers) < 0:
        raise ValueError(f"found layer {min(layers)}; expected 0 or more")
    return layers


class Freeze(Section):
    """What of a stage's model stands still: layers, embeddings; for all of the stage, or its first tokens.

    old, new: what the stage's growth found there, and what it added.
    """

    layers: Annotated[tuple[int, ...] | str | None, BeforeValidator(_as_layers)] = None
    embeddings: Flag = False
    lasts: FreezeFor | None = Field(None, alias="for")


class Stage(Section):
    stands_alone: ClassVar[bool] = True

    name: Annotated[Name, Field(examples=["small"])]
    until: Annotated[Until, Field(examples=["{tokens: 400K}"])]
    accept: Accept | None = None
    on_reject: OnReject | None = None
    seed: Seed | None = None
    grow: Annotated[Grow | None, Field(examples=["{operator: stack}"])] = None
    freeze: Freeze | None = None
    data: Data = Data()
    model: Model = Model()
    training: Training = Field(default_factory=Training)
