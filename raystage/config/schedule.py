"""What the user writes: a schedule, typed and frozen.

A stage is the file's defaults plus what it overrides. Sections are read as they stand in the file
(every key optional), then `resolve` lays a stage's sections over the file's and asks for what is
missing. Errors name the file, the key, what was found and what would be right.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from raystage.config import yaml_file
from raystage.config.conditions import Accept, OnReject, Until
from raystage.config.section import Section, explain
from raystage.config.types import (
    MOST_BUDGETS,
    MOST_STAGES,
    Beta,
    Context,
    Count,
    CountOrZero,
    Experts,
    Flag,
    Fraction,
    Heads,
    Layers,
    NotNegative,
    Positive,
    Seconds,
    Seed,
    Seeds,
    Share,
    Span,
    Text,
    Units,
    Words,
    WorkerCount,
    Workers,
)
from raystage.data.documents import BYTE_TOKENIZER
from raystage.errors import InputError
from raystage.growth.depth import GrowthOptions
from raystage.growth.operators import OPTIMIZER_STATE_POLICIES, parse_operator
from raystage.models.table import TRAINED
from raystage.units import parse_count, shown
from raystage.user_code import file_of, split_reference

_NAME = re.compile(r"\w[\w.-]{0,99}")
# File systems take 255 bytes for a name, and files and trials get a little more than the name itself.
LONGEST_NAME_BYTES = 160


def check_name(name: str) -> str:
    """A name that can stand in a path and on a command line. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"found {shown(name)}; expected letters, digits, '_', and after the first '.' and '-'")
    if (size := len(name.encode())) > LONGEST_NAME_BYTES:
        raise ValueError(f"found {shown(name)}, {size} bytes; expected at most {LONGEST_NAME_BYTES} bytes in UTF-8")
    return name


def _as_list(value: object) -> object:
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"found {shown(value)}; expected a file or folder, or a list of them")
    return [value] if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(check_name)]
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
    workers: WorkerCount = Workers(1)
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


# What may be tuned, by path: values of a whole run, of which both sides have one. The section and field of each.
TUNABLE: dict[str, tuple[type[Section], str]] = {
    **{f"training.optimizer.{name}": (Optimizer, name) for name in Optimizer.model_fields},
    "training.global_batch_tokens": (Training, "global_batch_tokens"),
    **{f"training.lr_schedule.{name}": (LrSchedule, name) for name in ("warmup", "decay", "min_lr_ratio")},
}


def _as_tuned(value: object) -> object:
    """The values of every path as its section takes them. Raises ValueError."""
    if not isinstance(value, dict):
        return value  # pydantic says what is wrong
    return {path: _tuned_values(str(path), values) for path, values in value.items()}


def _tuned_values(path: str, values: object) -> tuple[object, ...]:
    if path not in TUNABLE:
        near = difflib.get_close_matches(path, TUNABLE, n=1, cutoff=0.75)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"found {shown(path)}{hint}; expected one of {', '.join(TUNABLE)}")
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{path}: found {shown(values)}; expected a list of values such as [1e-3, 2e-3, 4e-3]")
    section, field = TUNABLE[path]
    found: list[object] = []
    for value in values:
        try:
            parsed = getattr(section.model_validate({field: value}), field)
        except ValidationError as error:
            raise ValueError(f"{path}: {explain(error, section).problem}") from None
        if parsed is None:
            raise ValueError(f"{path}: found null; expected a value")
        if parsed in found:
            raise ValueError(f"{path}: found {shown(value)} a second time; expected each value once")
        found.append(parsed)
    return tuple(found)


def _check_words(text: str) -> str:
    if not text.strip():
        raise ValueError(f"found {shown(text)}; expected a few words, such as: a search over 12 rates at 1M tokens")
    return text


class Baseline(Section):
    """The last stage's model from scratch, once per budget of tokens, each decayed on its own.

    tune: by path of the file's training section (`TUNABLE`) the values that are tried, on both sides of the comparison.
    training: what the baselines are trained with, laid over the last stage's.
    values_from: in the user's words, how these values were found where `tune` does not find them.
    """

    budgets: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_BUDGETS, examples=["[800K, 1.2M, 1.6M]"])]
    tune: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_as_tuned)] = Field(default_factory=dict)
    training: Training = Field(default_factory=Training)
    values_from: Annotated[Text, AfterValidator(_check_words)] | None = None


class Costs(Section):
    """What the report's bill is made with; no stage depends on it. price_per_hour: of a worker, in `currency`.

    grid_intensity: kg of CO2 for a kWh.
    """

    price_per_hour: NotNegative | None = None
    currency: Text | None = None
    grid_intensity: NotNegative | None = None

    @model_validator(mode="after")
    def _has_currency(self) -> Costs:
        if self.price_per_hour is not None and self.currency is None:
            raise ValueError(f"found a price_per_hour of {self.price_per_hour:g} alone; expected a currency, too: USD")
        return self


NO_COSTS = Costs()


class Init(Section):
    """What the first stage starts from: a Hugging Face model, a checkpoint or a stage of a store.

    optimizer_state: "grow" takes a checkpoint's along, "reset" begins without; a checkpoint's default is grow.
    """

    source: Annotated[Text, Field(alias="from", examples=["my/llama"])]
    optimizer_state: Literal["grow", "reset"] | None = None


class Schedule(Section):
    """A whole file. `file` is where it was read, for messages; None where it was not read from one.

    seeds: how often the staged run and its baselines are trained, with `seed` and those after it.
    """

    name: Annotated[Name, Field(examples=["quickstart"])]
    seed: Seed = 0
    seeds: Seeds = 1
    data: Data = Data()
    model: Model = Model()
    training: Training = Field(default_factory=Training)
    stages: Annotated[
        tuple[Stage, ...],
        Field(
            min_length=1,
            max_length=MOST_STAGES,
            examples=["[{name: small, model: {num_layers: 3}, until: {tokens: 400K}}]"],
        ),
    ]
    baseline: Annotated[Baseline | None, Field(examples=["{budgets: [800K, 1.2M, 1.6M]}"])] = None
    init: Annotated[Init | None, Field(examples=["{from: my/llama}"])] = None
    costs: Costs = NO_COSTS
    _file: str | None = PrivateAttr(default=None)

    @property
    def file(self) -> str | None:
        return self._file

    def content(self) -> dict[str, Any]:
        """What was written, as plain values; `parse` makes the same schedule of it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def resolved(self, index: int) -> Stage:
        """Stage `index` with the file's defaults under what it overrides."""
        stage = self.stages[index]
        return stage.model_copy(
            update={
                "data": self.data.overlaid(stage.data),
                "model": self.model.overlaid(stage.model),
                "training": self.training.overlaid(stage.training),
            }
        )


def load(path: str | Path, overrides: tuple[str, ...] = (), content: dict | None = None) -> Schedule:
    """The schedule in the file at `path` with `KEY=VALUE` overrides laid over it. content: what was read of it.

    Raises InputError: one message, for the first thing that is wrong.
    """
    file = Path(path)
    content = yaml_file.read_mapping(file) if content is None else content
    try:
        for override in overrides:
            yaml_file.apply_override(content, override)
        schedule = parse(content, beside=file.parent)
    except InputError as error:
        raise error.inside(str(file)) from None
    schedule._file = str(file)
    return schedule


def parse(content: dict, beside: Path | None = None) -> Schedule:
    """A schedule from plain data. Relative data paths are looked for in the working directory, then `beside`."""
    try:
        schedule = Schedule.model_validate(content)
    except ValidationError as error:
        raise explain(error, Schedule) from None
    return schedule.model_copy(
        update={
            "data": _located(schedule.data, beside),
            "init": _located_init(schedule.init, beside),
            **_located_metrics(schedule.training, beside),
            "stages": tuple(_located_stage(stage, beside) for stage in schedule.stages),
        }
    )


def _located(data: Data, beside: Path | None) -> Data:
    """The same with absolute paths; a tokenizer is a path where there is such a folder."""
    changes: dict[str, object] = {}
    for name in ("path", "validation_path"):
        if getattr(data, name):
            changes[name] = tuple(_locate(path, beside) for path in getattr(data, name))
    if data.tokenizer != BYTE_TOKENIZER and os.path.isdir(_locate(data.tokenizer, beside)):
        changes["tokenizer"] = _locate(data.tokenizer, beside)
    return data.model_copy(update=changes)


def _located_stage(stage: Stage, beside: Path | None) -> Stage:
    changes = {"data": _located(stage.data, beside), **_located_metrics(stage.training, beside)}
    return stage.model_copy(update=changes)


def _located_metrics(training: Training, beside: Path | None) -> dict[str, Training]:
    """What changes where metrics are named: the files that they are in get absolute paths."""
    if not training.evaluate.metrics:
        return {}
    metrics = tuple(_located_metric(metric, beside) for metric in training.evaluate.metrics)
    evaluate = training.evaluate.model_copy(update={"metrics": metrics})
    return {"training": training.model_copy(update={"evaluate": evaluate})}


def _located_metric(metric: Metric, beside: Path | None) -> Metric:
    file = file_of(metric.function)
    if file is None:
        return metric
    _, name = split_reference(metric.function)
    return metric.model_copy(update={"function": f"{_locate(file, beside)}:{name}"})


def _located_init(init: Init | None, beside: Path | None) -> Init | None:
    """The same with an absolute path where there is such a folder; else it is a hub name."""
    if init is None or not os.path.isdir(_locate(init.source, beside)):
        return init
    return init.model_copy(update={"source": _locate(init.source, beside)})


def _locate(path: str, beside: Path | None) -> str:
    here = os.path.abspath(os.path.expanduser(path))
    there = os.path.abspath(os.path.join(beside or "", os.path.expanduser(path)))
    return here if os.path.exists(here) or not os.path.exists(there) else there
