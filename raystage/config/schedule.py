"""What the user writes: a schedule, typed and frozen.

A stage is the file's defaults plus what it overrides. Sections are read as they stand in the file, where nearly every
key is optional. `planning.resolve` then applies a stage's sections to the file's and asks for what is missing. Errors
name the file, the key, what was found and what would be right.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from raystage.config import yaml_file
from raystage.config.loading.paths import absolute_paths
from raystage.config.objective import ObjectiveEntry, standard_objective
from raystage.config.section import Section, explain
from raystage.config.stage import Data, Model, Stage
from raystage.config.training import LrSchedule, Optimizer, Training
from raystage.config.types import (
    MOST_BUDGETS,
    MOST_STAGES,
    Count,
    Name,
    NotNegative,
    Positive,
    Seed,
    Seeds,
    Text,
)
from raystage.errors import InputError
from raystage.units import shown

# What may be tuned, by path, with its section and field: values that hold for a whole run and that both sides have.
# Baselines have no rates by depth.
TUNABLE: dict[str, tuple[type[Section], str]] = {
    **{f"training.optimizer.{name}": (Optimizer, name) for name in Optimizer.model_fields if name != "lr_by_depth"},
    "training.global_batch_tokens": (Training, "global_batch_tokens"),
    **{
        f"training.lr_schedule.{name}": (LrSchedule, name)
        for name in ("warmup", "decay", "decay_shape", "min_lr_ratio")
    },
}


def _as_tuned(value: object) -> object:
    """The values of every path, read as its section reads them. Raises ValueError."""
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


TunedValues = Annotated[
    dict[str, tuple[Any, ...]],
    BeforeValidator(_as_tuned),
    Field(json_schema_extra={"propertyNames": {"enum": list(TUNABLE)}}),
]


BUDGET_KEYS = ("budgets", "budgets_per_parameter")


class Baseline(Section):
    """The last stage's model, trained from scratch once for each budget. It is what the staged run is compared with."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [key]} for key in BUDGET_KEYS]})

    budgets: (
        Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_BUDGETS, examples=["[800K, 1.2M, 1.6M]"])]
        | None
    ) = None
    """The length of each run, in tokens or samples as the last stage counts. Each has a whole learning-rate schedule of
    its own."""
    budgets_per_parameter: (
        Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MOST_BUDGETS, examples=["[10, 14, 20]"])] | None
    ) = None
    """The same for every parameter of the last stage's model, in place of `budgets`."""
    tune: TunedValues = Field(default_factory=dict)
    """By path in the file's `training` the values to try, on both sides of the comparison: of the optimizer, the batch,
    and `warmup`, `decay` and `min_lr_ratio` of the learning rate."""
    training: Training = Field(default_factory=Training)
    """What the baselines are trained with, over the last stage's training."""
    data: Literal["last", "staged"] = "last"
    """What the baselines read: `last` the last stage's text alone; `staged` the texts of all stages, in their order and
    each over the same share of the run."""
    values_from: Annotated[Text, AfterValidator(_check_words)] | None = None
    """In your own words how the values were found, where `tune` does not find them. The report prints it."""

    @model_validator(mode="after")
    def _has_budgets(self) -> Self:
        if (self.budgets is None) == (self.budgets_per_parameter is None):
            found = "missing budgets" if self.budgets is None else "found budgets beside budgets_per_parameter"
            raise ValueError(f"{found}; expected one of the two, for example budgets: [800K, 1.2M, 1.6M]")
        return self

    @property
    def num_budgets(self) -> int:
        return len(self.budgets or self.budgets_per_parameter)

    def budgets_of(self, num_params: int) -> tuple[int, ...]:
        """The budgets where the last stage's model has so many parameters."""
        return self.budgets or tuple(max(1, round(one * num_params)) for one in self.budgets_per_parameter)


class Costs(Section):
    """Prices, for the costs in the report. No result depends on them."""

    price_per_hour: NotNegative | None = None
    """The price of one worker for an hour, in `currency`."""
    currency: Text | None = None
    """The currency, as the report prints it."""
    grid_intensity: NotNegative | None = None
    """The CO2 of the electricity, in kg per kWh."""

    @model_validator(mode="after")
    def _has_currency(self) -> Costs:
        if self.price_per_hour is not None and self.currency is None:
            raise ValueError(f"found a price_per_hour of {self.price_per_hour:g} alone; expected a currency, too: USD")
        return self


NO_COSTS = Costs()


class Init(Section):
    """What the first stage starts from, in place of random weights."""

    source: Annotated[Text, Field(alias="from", examples=["my/llama"])]
    """A Hugging Face folder or name, a checkpoint, a stage's folder in a store, or a stage's name or key in the store
    of the command."""
    optimizer_state: Literal["grow", "reset"] | None = None
    """`grow` takes the optimizer state of a checkpoint over, `reset` starts without; a checkpoint's is taken over
    unless given."""


class RunLength(Section):
    """The length of the whole staged run, of which stages take a `share`. One of the two."""

    tokens: Count | None = None
    """Tokens of training."""
    tokens_per_parameter: Annotated[Positive | None, Field(examples=["20"])] = None
    """Tokens of training for every parameter of the last stage's model."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.tokens is None) == (self.tokens_per_parameter is None):
            raise ValueError(f"found {'both' if self.tokens else 'nothing'}; expected tokens or tokens_per_parameter")
        return self


class Schedule(Section):
    """A schedule: the stages of a run, their defaults, and the baseline they are compared with."""

    name: Annotated[Name, Field(examples=["quickstart"])]
    """The name of the run."""
    seed: Seed = 0
    """The seed of the first weights and of the order of the text."""
    seeds: Seeds = 1
    """How many times the staged run and its baselines are trained: with `seed`, `seed + 1` and so on."""
    data: Data = Data()
    """The text, for all stages."""
    model: Model = Model()
    """The shape of the model, for all stages."""
    objective: ObjectiveEntry = Field(default_factory=standard_objective)
    """What is learned, in all stages."""
    training: Training = Field(default_factory=Training)
    """The training, for all stages."""
    length: Annotated[RunLength | None, Field(examples=["{tokens_per_parameter: 20}"])] = None
    """The length of the staged run, where stages end after a `share` of it."""
    stages: Annotated[
        tuple[Stage, ...],
        Field(
            min_length=1,
            max_length=MOST_STAGES,
            examples=["[{name: small, model: {num_layers: 3}, until: {tokens: 400K}}]"],
        ),
    ]
    """The stages, in order. Each starts from the model of the one before."""
    baseline: Annotated[Baseline | None, Field(examples=["{budgets: [800K, 1.2M, 1.6M]}"])] = None
    """The last stage's model from scratch. Without it no saving is measured."""
    init: Annotated[Init | None, Field(examples=["{from: my/llama}"])] = None
    """A model that the first stage starts from."""
    costs: Costs = NO_COSTS
    """Prices, for the report."""
    _file: str | None = PrivateAttr(default=None)

    @property
    def file(self) -> str | None:
        """The file it was read from, for messages; None where it was not read from one."""
        return self._file

    def content(self) -> dict[str, Any]:
        """The schedule as written, as plain values. `parse` makes the same schedule of it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def resolved(self, index: int) -> Stage:
        """Stage `index` with the file's defaults under it."""
        stage = self.stages[index]
        return stage.model_copy(
            update={
                "data": self.data.overlaid(stage.data),
                "model": self.model.overlaid(stage.model),
                "objective": self.objective.overlaid(stage.objective),
                "training": self.training.overlaid(stage.training),
            }
        )


def is_sweep(content: dict) -> bool:
    """Whether a file holds a sweep rather than a schedule."""
    return "space" in content


def is_schedule(content: dict) -> bool:
    """Whether a file holds a schedule rather than a sweep."""
    return not is_sweep(content) and "stages" in content


def load(path: str | Path, overrides: tuple[str, ...] = (), content: dict | None = None) -> Schedule:
    """The schedule in the file at `path`, with `KEY=VALUE` overrides applied.

    content: what was read of the file, where it was read already. Raises InputError: one message, for the first thing
    that is wrong.
    """
    file = Path(path)
    content = yaml_file.read_mapping(file) if content is None else content
    if is_sweep(content):
        raise InputError(f"found a sweep; expected a schedule, or the command: raystage sweep {path}", file=str(path))
    try:
        for override in overrides:
            yaml_file.apply_override(content, override)
        schedule = parse(content, beside=file.parent)
    except InputError as error:
        raise error.inside(str(file)) from None
    schedule._file = str(file)
    return schedule


def parse(content: dict, beside: Path | None = None) -> Schedule:
    """A schedule from plain data. Relative paths are looked for in the working directory, then in `beside`."""
    try:
        schedule = Schedule.model_validate(content)
    except ValidationError as error:
        raise explain(error, Schedule) from None
    return schedule.model_copy(update=absolute_paths(schedule, beside))
