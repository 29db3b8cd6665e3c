"""The order of a stage's text, resolved."""

from __future__ import annotations

from raystage.data.order.curriculum import LENGTH, CurriculumPlan, digest_of_scores
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.planning.draft import Context, StageDraft
from raystage.sources.corpus import SCORE_KEY
from raystage.sources.table import SOURCES

_LEVELS = 4  # of the pacing "step"


def fix_curriculum(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the order of the text, with the tokens after which all of it is read."""
    written = draft.stage.data.curriculum
    if written is None:
        return draft
    if draft.objective.entry.unit != "tokens":
        problem = f"found a curriculum with the objective {draft.objective.name}, which reads samples"
        raise InputError(f"{problem}; expected an objective that reads text", key="data.curriculum")
    tokens = max(1, round(written.over * draft.duration)) if written.over <= 1 else int(written.over)
    if tokens > draft.duration:
        found = f"found {tokens} in a stage of {draft.duration} tokens"
        raise InputError(f"{found}; expected at most as many, or a fraction up to 1", key="data.curriculum.over")
    levels = (written.levels or _LEVELS) if written.pacing == "step" else None
    is_hard_first = written.first == "hard"
    column = None if written.by == LENGTH else written.by.column
    by = LENGTH if column is None else "column"
    digests = () if column is None else _digests(draft, context, column)
    plan = CurriculumPlan(by, is_hard_first, written.start, written.pacing, tokens, levels, column, digests)
    return replaced(draft, curriculum=plan)


def _digests(draft: StageDraft, context: Context, column: str) -> tuple[tuple[str, str], ...]:
    """By content of the texts that are read those of their numbers. All rows are read once more for that."""
    found = []
    for part in draft.data.parts:
        data = part.data
        if not part.weight:
            continue
        if not SOURCES[data.source].has_scores:
            able = " or ".join(name for name, source in SOURCES.items() if source.has_scores)
            problem = f"found a column with source {data.source}, which has none"
            raise InputError(f"{problem}; expected by: {LENGTH}, or source: {able}", key=SCORE_KEY)
        scores = context.sources.corpus(data.source, data.path, data.options).scores(column, data.validation_fraction)
        found.append((data.content, digest_of_scores(scores)))
    return tuple(found)
