"""The order of a stage's text, resolved."""

from __future__ import annotations

from dataclasses import replace

from raystage.data.order.curriculum import CurriculumPlan
from raystage.errors import InputError
from raystage.planning.draft import Context, StageDraft

_STEPS = 4  # of the pacing "step"


def fix_curriculum(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the order of the text, with the tokens after which all of it is read."""
    written = draft.stage.data.curriculum
    if written is None:
        return draft
    tokens = max(1, round(written.over * draft.duration)) if written.over <= 1 else int(written.over)
    if tokens > draft.duration:
        found = f"found {tokens} in a stage of {draft.duration} tokens"
        raise InputError(f"{found}; expected at most as many, or a fraction up to 1", key="data.curriculum.over")
    steps = (written.steps or _STEPS) if written.pacing == "step" else None
    is_hard_first = written.first == "hard"
    plan = CurriculumPlan(written.by, is_hard_first, written.start, written.pacing, tokens, steps)
    return replace(draft, curriculum=plan)
