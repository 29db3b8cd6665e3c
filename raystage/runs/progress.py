"""How far a stage and a run are, and how that reads in words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from raystage.growth.checks import changed_fields
from raystage.growth.operators import in_short
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.reports.formats import format_jump, format_layers, format_loss
from raystage.results.endings import AdapterRecord, AverageRecord
from raystage.results.record import Evaluation, GrowthRecord, TrainPoint
from raystage.units import format_count, format_seconds, format_speed


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is, by what was heard last.

    step: within the stage. run_seconds_left: for the rest of the whole run, with its baselines.
    """

    run: RunPlan
    stage: StagePlan
    state: str
    step: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    speed: float | None = None
    run_seconds_left: float | None = None

    @property
    def number(self) -> str:
        """'2/3'."""
        keys = [stage.key for stage in self.run.stages]
        return f"{keys.index(self.stage.key) + 1}/{len(keys)}"

    @property
    def label(self) -> str:
        return f"[{self.run.name} {self.number} {self.stage.name}]"

    @property
    def seconds_left(self) -> float | None:
        """For the rest of the stage, at the speed of the last point of the curve."""
        if not self.speed:
            return None
        return (self.stage.duration - self.stage.step_schedule.duration(self.step)) / self.speed

    def after_training(self, point: TrainPoint) -> StageProgress:
        return replace(
            self,
            state="RUNNING",
            step=point.steps - self.stage.start_steps,
            loss=point.loss,
            speed=point.speed,
        )

    def after_evaluation(self, point: Evaluation) -> StageProgress:
        return replace(self, state="RUNNING", step=point.steps - self.stage.start_steps, eval_loss=point.loss)

    def without_speed(self) -> StageProgress:
        """While nothing trains, the speed of before says nothing about the time that is left."""
        return replace(self, speed=None, run_seconds_left=None)

    def text(self) -> str:
        """'step 64/98  loss 2.310  eval 2.290  1.2K tok/s  0:43 left', without what is not known."""
        parts = [f"step {self.step}/{self.stage.steps}"]
        if self.loss is not None:
            parts.append(f"loss {format_loss(self.loss)}")
        if self.eval_loss is not None:
            parts.append(f"eval {format_loss(self.eval_loss)}")
        if self.speed:
            parts += [f"{format_speed(self.speed, self.stage.unit)}", f"{format_seconds(self.seconds_left)} left"]
            if self.run_seconds_left is not None:
                parts.append(f"run: {format_seconds(self.run_seconds_left)} left")
        elif self.state == "RUNNING":
            parts.append("time left unknown")
        return "  ".join(parts)


def describe_stage(stage: StagePlan) -> str:
    """'6 layers, 353K parameters, 98 steps of 4.1K tokens, 2 workers, ZeRO 1'."""
    training = stage.training
    return (
        f"{format_layers(stage.shape.num_layers)}, {format_count(stage.num_params)} parameters, {_adapter_of(stage)}"
        f"{stage.steps} steps of {_batches(stage)} {stage.unit}, "
        f"{training.workers!s} worker{'s' if training.workers.most > 1 else ''}, ZeRO {training.zero_stage}"
    )


def _adapter_of(stage: StagePlan) -> str:
    """'LoRA of rank 16 (12.3K trained), ' where the stage has an adapter."""
    return f"LoRA of rank {stage.adapter.rank} ({format_count(stage.num_trained)} trained), " if stage.adapter else ""


def _batches(stage: StagePlan) -> str:
    """'4.1K', or of a ramp '1.0K to 4.1K'."""
    sizes = (stage.step_schedule.segments[0].batch, stage.training.global_batch)
    return " to ".join(dict.fromkeys(map(format_count, sizes)))


def describe_growth(stage: StagePlan, growth: GrowthRecord) -> str:
    """'grown by duplicate in 1.2 s: eval loss 2.290 -> 2.290, logits differ by up to 3e-06, gradients as predicted
    (to 1e-06)'. Gradients are left out unless an exact prediction of them was tested. What does not claim to keep the
    function says so. Of a model with another head than before only its having one is said."""
    certificate = growth.certificate
    grows = stage.parent_shape is None or bool(changed_fields(stage.parent_shape, stage.shape))
    by = f"grown by {in_short(growth.operator)}" if grows else "taken over"
    grown = f"{by} in {growth.seconds:.1f} s"
    if certificate.max_logit_difference is None:
        return f"{grown}, with another head"
    error = certificate.gradient_error
    gradients = "" if error is None else f", gradients as predicted (to {error:.1g})"
    inexact = ", not exact" if certificate.exact is False else ""
    return (
        f"{grown}: eval loss {format_jump(certificate.eval_loss_before, certificate.eval_loss_after)}, "
        f"logits differ by up to {certificate.max_logit_difference:.2g}{inexact}{gradients}"
    )


def describe_average(average: AverageRecord) -> str:
    """'ends with the average of its last 4 checkpoints: eval loss 2.290, the last alone 2.310'."""
    count, losses = len(average.positions), (average.eval_loss, average.single_eval_loss)
    own, single = map(format_loss, losses)
    if average.is_kept:
        return f"ends with the average of its last {count} checkpoints: eval loss {own}, the last alone {single}"
    return f"ends with its last checkpoint: eval loss {single}, the average of the last {count} {own}"


def describe_adapter(adapter: AdapterRecord) -> str:
    """'ends with LoRA of rank 16 merged: eval loss 2.290, 2.290 before'."""
    own, before = map(format_loss, (adapter.eval_loss, adapter.unmerged_eval_loss))
    return f"ends with LoRA of rank {adapter.rank} merged: eval loss {own}, {before} before"


class Pace:
    """How much time a whole plan has left, with its baselines: the FLOPs that are left, at the speed measured last.

    finished: the keys of the stages that the store has; its owner keeps it up to date.
    """

    def __init__(self, plan: Plan, finished: Collection[str] = ()) -> None:
        self._flops = {key: _all_flops(stage) for key, stage in plan.stages_by_key().items()}
        self._finished, self._seen = finished, set[str]()

    def finish(self, stage: StagePlan) -> None:
        self._seen.add(stage.key)

    def seconds_left(self, stage: StagePlan, step: int, speed: float | None) -> float | None:
        """After `step` steps of `stage`, without the time to start workers. None before a speed was measured."""
        if not speed:
            return None
        ended = {*self._finished, *self._seen, stage.key}
        others = sum(flops for key, flops in self._flops.items() if key not in ended)
        left = others + _all_flops(stage) * max(0, stage.steps - step) / stage.steps
        return left / (speed * stage.unit_flops(stage.shape.context_length))


def _all_flops(stage: StagePlan) -> int:
    return stage.flops + stage.evaluation_flops
