"""What is known about the training of a stage: the points of its curves, its growth, its record.

Frozen values that can be written as JSON and read back. `position`, `steps` and `flops` of a point are counted from the
start of its run, so that the curves of a chain of stages join up; `seconds` from the start of the stage. A position
and a duration are in the unit of the stage, whose name is their key in JSON: `tokens` or `samples`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raystage.files.typed_json import (
    LEFT_OUT_IF_DEFAULT,
    LEFT_OUT_IF_EMPTY,
    json_key,
    to_json,
    unit_key,
    with_field_names,
)
from raystage.models.shape import ModelShape
from raystage.plans.keys import placed
from raystage.plans.stage import StagePlan
from raystage.results.endings import AdapterRecord, AverageRecord
from raystage.results.scoring import ScoringRecord
from raystage.units import TOKENS, Unit


@dataclass(frozen=True)
class TrainPoint:
    """Training since the previous point: mean loss (nats per token), the last rate and gradient norm."""

    position: int = field(metadata=unit_key())
    steps: int
    flops: int
    seconds: float
    loss: float
    lr: float
    gradient_norm: float
    speed: float = field(metadata=unit_key("{}_per_second"))
    mfu: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Mean loss (nats per token) on the held-out documents. accuracy: the share of tokens predicted, if measured.

    metrics: the schedule's own, by name, as far as they were measured. choosing_loss, judging_loss: the loss on the
    first half of the text, which chooses tuned values, and on the second half, which compares the best of them; None in
    older records, and for a single sequence. sources: of a mixture, by the content of a source (`DataPlan.content`) the
    loss on it; `loss` is then their mean by the weights of the mixture.
    """

    position: int = field(metadata=unit_key())
    steps: int
    flops: int
    seconds: float
    loss: float
    accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    choosing_loss: float | None = None
    judging_loss: float | None = None
    sources: dict[str, float] = field(default_factory=dict, metadata=LEFT_OUT_IF_EMPTY)

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """e to the power of the loss; infinite where it is larger than a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Certificate:
    """What a growth did to the model, measured. A figure is None where there was nothing to measure it on.

    eval_loss_before, eval_loss_after: on the held-out data of the source, by its objective. All other figures are from
    fixed inputs. With another head than the source's there is no loss after, no difference of logits and no gradient.

    max_logit_difference, mean_logit_difference: absolute, over the tokens that both models know.

    activation_rms_ratio: for each target layer the RMS of the residual stream after it, divided by that after its
    source layer. A layer without a source is compared with the source of the nearest layer below that has one.

    gradient_error: the largest relative difference between the gradient that the growth map predicts from the source's
    and the real one, over the parameters whose rules claim to be exact. gradient_error_estimated: the same over those
    whose rules claim an estimate. A mixture of experts under ZeRO 3 has neither.

    moment_norms: by state of the optimizer its norm "before" and "after".

    twin_distance: the smallest relative distance, over the parameters, between copies of one unit or layer, after
    `twin_steps` steps of training; 0 means that they never become different.

    seconds: of growing, on this worker. bytes_read: of the source, by all workers. exact: what the operator claims.
    """

    eval_loss_before: float
    eval_loss_after: float | None
    max_logit_difference: float | None
    mean_logit_difference: float | None = None
    activation_rms_ratio: tuple[float | None, ...] = ()
    gradient_error: float | None = None
    gradient_error_estimated: float | None = None
    moment_norms: dict[str, dict[str, float]] = field(default_factory=dict)
    twin_distance: float | None = None
    twin_steps: int | None = None
    seconds: float | None = field(default=None, compare=False)
    bytes_read: int | None = None
    exact: bool | None = None

    @property
    def loss_increase(self) -> float | None:
        return None if self.eval_loss_after is None else self.eval_loss_after - self.eval_loss_before

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Certificate:
        """From plain values, also those of older versions, which measured less."""
        return cls(**{**content, "activation_rms_ratio": tuple(content.get("activation_rms_ratio", ()))})


@dataclass(frozen=True)
class GrowthRecord:
    operator: str
    optimizer_state: str
    seconds: float
    certificate: Certificate
    flops: int = 0  # of the fit, where the operator fits anything
    energy_joules: float | None = None


@dataclass(frozen=True)
class Prefix:
    """The finished stage that a longer version of it continued from, and the training that the longer one saved."""

    key: str
    duration: int = field(metadata=unit_key())
    flops: int
    seconds: float
    energy_joules: float | None = None


@dataclass(frozen=True)
class StageRecord:
    """A finished stage. seconds: of growing, scoring documents, training and saving; evaluation is listed separately.

    flops and duration are those of the stage, including its prefix, without its ancestors; seconds are wall-clock time.
    energy_joules: measured over `seconds`, of all workers' devices; None where one of them has no meter.
    average: None where the stage ends with its last checkpoint without having tried another model. adapter: what the
    stage trained in place of the model's own parameters.
    """

    key: str
    parent_key: str | None
    name: str
    shape: ModelShape
    num_params: int
    num_workers: int
    zero_stage: int
    duration: int = field(metadata=unit_key())
    steps: int
    flops: int
    seconds: float
    evaluation_seconds: float
    evaluation_flops: int
    peak_memory_bytes: int
    eval_loss: float
    checkpoint: str  # folder, relative to the stage's own folder in the store
    growth: GrowthRecord | None = None
    train: tuple[TrainPoint, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    best_checkpoints: tuple[str, ...] = ()  # folders like `checkpoint`, which may be among them; the best first
    prefix: Prefix | None = field(default=None, metadata=json_key("donor"))
    stopped_by: str = ""  # what ended it, in a sentence
    trained_for: str = ""  # the name of the run that finished it
    resizes: int = 0  # how often the number of workers changed within it; num_workers is that at its end
    energy_joules: float | None = None
    evaluation_energy_joules: float | None = None
    data: dict[str, Any] = field(default_factory=dict)  # the size of its text: `data_use.Counted`
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)
    average: AverageRecord | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    scoring: ScoringRecord | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    adapter: AdapterRecord | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    compiled_graphs: int | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)  # by its last workers, if it compiles

    @property
    def end(self) -> Evaluation:
        """The evaluation at its end."""
        return self.evaluations[-1]

    @property
    def flops_spent(self) -> int:
        """FLOPs without those of its prefix."""
        return self.flops - (self.prefix.flops if self.prefix else 0)

    @property
    def last_checkpoint(self) -> str:
        """Where its training ended: the checkpoint that a longer version continues from."""
        made = self.average or self.adapter
        return made.single if made else self.checkpoint

    @property
    def needed_checkpoints(self) -> tuple[str, ...]:
        """The folders that it names."""
        of_average = self.average.checkpoints if self.average else ()
        return tuple(dict.fromkeys((self.checkpoint, self.last_checkpoint, *self.best_checkpoints, *of_average)))

    @property
    def worker_seconds(self) -> float:
        return self.seconds * self.num_workers

    def to_json(self) -> dict[str, Any]:
        return to_json(self) | {"shape": self.shape.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> StageRecord:
        content = with_field_names(cls, content)
        growth, average, scoring = content.pop("growth"), content.pop("average", None), content.pop("scoring", None)
        adapter = content.pop("adapter", None)
        return cls(
            adapter=adapter and AdapterRecord(**adapter),
            average=average and AverageRecord.from_json(average),
            scoring=scoring and ScoringRecord(**scoring),
            best_checkpoints=tuple(content.pop("best_checkpoints", ())),
            shape=ModelShape(**content.pop("shape")),
            growth=growth_from_json(growth),
            prefix=prefix_from_json(content.pop("prefix", None)),
            train=tuple(TrainPoint(**point) for point in content.pop("train")),
            evaluations=tuple(Evaluation(**point) for point in content.pop("evaluations")),
            **content,
        )


def growth_from_json(content: dict[str, Any] | None) -> GrowthRecord | None:
    if content is None:
        return None
    return GrowthRecord(**{**content, "certificate": Certificate.from_json(content["certificate"])})


def prefix_from_json(content: dict[str, Any] | None) -> Prefix | None:
    return None if content is None else Prefix(**content)


@dataclass
class Progress:
    """The state of a stage's training. All of it is in every checkpoint, so that no restart loses any.

    num_workers: of the workers that wrote the checkpoint. resizes: how many times that changed within the stage.
    pending_...: since the last point of the curve; the losses are summed over targets, by worker.
    """

    steps: int
    position: int = field(metadata=unit_key())
    flops: int
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluation_flops: int = 0
    pending_losses: list[float] = field(default_factory=list)
    pending_steps: int = 0
    pending_seconds: float = 0.0
    # None where every token is a target; older versions do not know it.
    pending_targets: int | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    num_workers: int = 0
    resizes: int = 0
    growth: GrowthRecord | None = None
    train: list[TrainPoint] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    prefix: Prefix | None = field(default=None, metadata=json_key("donor"))
    energy_joules: float | None = None  # None where some of it was not measured
    evaluation_energy_joules: float | None = None
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)
    scoring: ScoringRecord | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)

    @classmethod
    def at_start(cls, stage: StagePlan) -> Progress:
        start = stage.start_steps, stage.start, stage.start_flops
        return cls(*start, energy_joules=0.0, evaluation_energy_joules=0.0, unit=stage.unit)

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Progress:
        # pending_loss: of older versions, always 0.
        content = with_field_names(cls, content)
        known = {key: value for key, value in content.items() if key != "pending_loss"}
        return cls(
            **{
                **known,
                "growth": growth_from_json(content["growth"]),
                "prefix": prefix_from_json(known.get("prefix")),
                "scoring": ScoringRecord(**known["scoring"]) if known.get("scoring") else None,
                "train": [TrainPoint(**point) for point in content["train"]],
                "evaluations": [Evaluation(**point) for point in content["evaluations"]],
            }
        )


def where_it_begins(stage: StagePlan, before: StageRecord | None) -> StagePlan:
    """The stage as it is trained after `before`, its finished parent. Where the unit changes, positions begin anew."""
    if before is None or not before.evaluations:
        return stage
    position = before.end.position if before.unit == stage.unit else 0
    return placed(stage, position, before.end.steps, before.end.flops)


def with_real_ends(stage: StagePlan, record_of: Callable[[str], StageRecord | None]) -> StagePlan:
    """The stage after earlier stages that ended where their records say: what a mixture reads depends on all of them.

    record_of: the record of a finished stage by its key. Of the stages before only the last may already be where it
    really ended: there is no `reading` then, since the others may end behind it.
    """
    if not stage.reads_by_cursors:
        return stage
    earlier, key = list(stage.earlier), stage.parent_key
    for place in reversed(range(len(earlier))):
        record = record_of(key) if key else None
        if record is None or not record.evaluations:
            break
        earlier[place], key = replace(earlier[place], end=record.end.position), record.parent_key
    return replace(stage, earlier=tuple(earlier))
