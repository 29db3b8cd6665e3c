"""What a driver trains next where others train parts of the same plan, as the trials of a sweep do: they have the same
baselines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.storage.jobs import jobs

Free = Callable[[Sequence[StagePlan]], Sequence[StagePlan]]


def next_turn(runs: Iterable[RunPlan], finished: Collection[str], free: Free) -> tuple[StagePlan, ...]:
    """The next stages of the first run that is not finished, so that others may train those after it; none if all are.

    If another driver trains them, those of the first run after it that need nothing of another run, that no gate judges
    and that nobody trains, as baselines are. If there are none, the first run's stages, to be waited for.

    free: the stages up to the first one that another driver trains.
    """
    pending = [left for run in runs if (left := tuple(one for one in run.stages if one.key not in finished))]
    if not pending:
        return ()
    first = jobs(pending[0])[0]
    if free(first):
        return first
    begins = {None, *finished}
    apart = (jobs(left)[0] for left in pending[1:] if _is_plain(left) and left[0].parent_key in begins)
    return next((job for job in apart if free(job)), first)


def _is_plain(stages: Sequence[StagePlan]) -> bool:
    """Whether stages only continue each other's training, each to its planned end."""
    return not any(one.growth or one.teacher or one.scorers or one.accept or one.until for one in stages)
