"""Whether a stage ends where it is, because a condition of its `until` holds."""

from __future__ import annotations

from raystage.plans import learning_rate
from raystage.plans.open_ends import reads_clock
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.results.stopping import Seen, fired
from raystage.train.collectives import broadcast_object


def fired_now(stage: StagePlan, progress: Progress) -> str | None:
    """The condition of `until` that holds; None if there is none. Collective where a condition reads the clock.

    None during the warm-up, which the stage after this one could not finish, and before a growth's rewarm or mask is
    over, of which the stage after this one knows nothing.
    """
    growth_end = stage.start + (stage.growth.duration if stage.growth else 0)
    if stage.until is None or progress.position < max(learning_rate.warmup_end(stage.rate), growth_end):
        return None
    seen = Seen(
        progress=progress.position - stage.start,
        steps=progress.steps - stage.start_steps,
        flops=progress.flops - stage.start_flops,
        seconds=broadcast_object(progress.seconds) if reads_clock(stage.until) else progress.seconds,
        evaluations=tuple(progress.evaluations),
    )
    return fired(stage.until, seen)


def is_time_up(stage: StagePlan, progress: Progress) -> bool:
    """Whether the stage ends now since its time is over, also where no evaluation is due. Collective if it has one."""
    return stage.until is not None and reads_clock(stage.until) and fired_now(stage, progress) is not None
