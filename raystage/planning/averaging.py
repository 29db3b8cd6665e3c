"""The average of a stage's last checkpoints: whether the stage has so many."""

from __future__ import annotations

from dataclasses import replace

from raystage.errors import InputError
from raystage.planning.draft import Context, StageDraft
from raystage.plans.averaging import Averaging
from raystage.plans.steps import StepSchedule
from raystage.units import format_count


def fix_averaging(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the average over the stage's last checkpoints."""
    written = draft.stage.average
    if written is None:
        return draft
    shape = written.decay_shape if written.weights == "wsm" else None
    averaging = Averaging(written.last, written.every, shape)
    if problem := averaging_problem(averaging, draft.steps, draft.step_schedule, draft.unit):
        raise InputError(problem, key="average.every")
    return replace(draft, averaging=averaging)


def averaging_problem(averaging: Averaging, steps: int, schedule: StepSchedule, unit: str) -> str | None:
    """What is wrong with an average in a stage of so many steps; None otherwise. unit: of the stage."""
    batch, every = schedule.segments[-1].batch, averaging.every
    if every < batch:
        return f"found {every} in steps of {batch} {unit}; expected at least a step between two checkpoints"
    count = len(averaging.ends(steps, schedule))
    if count < averaging.last:
        length = int(schedule.duration(steps))
        found = f"found {format_count(every)} in a stage of {format_count(length)} {unit}, which gives {count} of the"
        most = length // averaging.last
        return f"{found} {averaging.last} checkpoints to average; expected at most {most}, or a smaller average.last"
    return None
