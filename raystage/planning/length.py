"""How long a stage is: the part of `until` that is known before training.

Tokens, steps, FLOPs and a mixing time are fixed when the schedule is planned: `cap_steps`. A stage that `is_open` may
end before that on what its training shows; `results.stopping` decides that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from raystage.config.conditions import Mixing, Until
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.planning.draft import Context, StageDraft
from raystage.plans import learning_rate
from raystage.plans.open_ends import is_open
from raystage.plans.step_costs import StepCosts
from raystage.plans.steps import check_ramp_fits

FIXED = ("tokens", "samples", "steps", "flops", "mixing")

LATEST_MIXING_SHARE = (4, 5)  # of the run: after a later growth too few tokens are left

# From the tokens of a whole run to the position where its rate begins to decay; None where it has no stable phase.
DecayStart = Callable[[int], int | None]


def fix_length(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the number of steps at which the stage ends at the latest, and what may end it before."""
    until, start = draft.stage.until, context.start_of_next(draft.unit)
    decay = partial(learning_rate.decay_start, draft.training.lr_schedule)
    steps = cap_steps(until, draft.step_costs, start, decay)
    draft = replaced(draft, steps=steps, until=placed_mixing(until, start, decay) if is_open(until) else None)
    check_ramp_fits(draft.training, draft.duration, draft.unit)
    return draft


def cap_steps(until: Until, costs: StepCosts, start: int, decay_start: DecayStart) -> int:
    """The number of whole optimizer steps after which the stage ends at the latest.

    The stage ends with the first step that reaches a fixed limit. Of several limits the smallest counts; inside `all`
    the largest. start: where the stage begins in its run. Raises InputError,
    with `until` or a key below it, where the stage has no cap although it may never end, or where a mixing time leaves
    it no tokens.
    """
    if is_open(until) and not any(key in until.given for key in FIXED):
        beside = " and ".join(key for key in until.given)
        raise InputError(f"missing a cap; expected tokens, steps or flops beside {beside}", key="until")
    return _cap(placed_mixing(until, start, decay_start), costs)


def _cap(until: Until, costs: StepCosts) -> float:
    """A whole number of steps; infinite where nothing fixed ends the stage."""
    ends: list[float] = [math.inf]
    for amount in (until.tokens, until.samples):
        if amount is not None:
            ends.append(costs.schedule.steps_for(amount))
    if until.steps is not None:
        ends.append(until.steps)
    if until.flops is not None:
        ends.append(costs.steps_for(until.flops))
    ends += [_cap(part, costs) for part in until.any or ()]
    if until.all is not None:
        ends.append(max(_cap(part, costs) for part in until.all))
    return min(ends)


def placed_mixing(until: Until, start: int, decay_start: DecayStart, key: str = "until") -> Until:
    """The same `until` with every mixing time replaced by tokens from the stage's start.

    Raises InputError, at `key` or below, where a mixing time leaves the stage no tokens.
    """
    changes: dict[str, object] = {}
    if until.mixing is not None:
        position = _mixing_position(until.mixing, decay_start, f"{key}.mixing")
        tokens = position - start
        if tokens <= 0:
            found = f"found a growth at {position} tokens of the run, where the stage begins at {start}"
            problem = f"{found}; expected a later one: a shorter mixing time, or shorter stages before"
            raise InputError(problem, key=f"{key}.mixing")
        changes = {"mixing": None, "tokens": min(tokens, until.tokens or tokens)}
    for name in ("any", "all"):
        parts = getattr(until, name)
        if parts is not None:
            changes[name] = tuple(
                placed_mixing(part, start, decay_start, f"{key}.{name}[{index}]") for index, part in enumerate(parts)
            )
    return until.model_copy(update=changes) if changes else until


def _mixing_position(mixing: Mixing, decay_start: DecayStart, key: str) -> int:
    """The token of the run at which to grow: the mixing time before its rate decays, at most 0.8 of the run.

    Source: Bu (2511.04981).
    """
    stable_end = decay_start(mixing.of)
    if stable_end is None:
        problem = "found with a rate that has no stable phase; expected lr_schedule.kind: wsd or constant"
        raise InputError(problem, key=key)
    numerator, denominator = LATEST_MIXING_SHARE
    return min(stable_end - mixing.tokens, mixing.of * numerator // denominator)
