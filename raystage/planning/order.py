"""The order of a stage's text, resolved."""

from __future__ import annotations

from collections.abc import Sequence

from raystage.data.order.curriculum import LENGTH, LOSS_KEY, CurriculumPlan, Scorer, digest_of_scores
from raystage.data.plan import vocabulary_problem
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.growth.explain import head_in_words
from raystage.models.families import FAMILIES
from raystage.planning.draft import Context, StageDraft
from raystage.plans.initial import TeacherPlan
from raystage.plans.stage import StagePlan
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
    plan = CurriculumPlan(LENGTH, written.first == "hard", written.start, written.pacing, tokens, levels)
    if written.by == LENGTH:
        return replaced(draft, curriculum=plan)
    if written.by.loss is not None:
        scorer = _find_scorer(written.by.loss, draft, context)
        return replaced(draft, curriculum=replaced(plan, by="loss", scorer=Scorer(scorer.name)), scorer=scorer)
    column, digests = written.by.column, _digests(draft, context, written.by.column)
    return replaced(draft, curriculum=replaced(plan, by="column", column=column, digests=digests))


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


# --- by the loss under an earlier stage -----------------------------------------------------------


def _find_scorer(name: str, draft: StageDraft, context: Context) -> TeacherPlan:
    """The earlier stage of this name. Raises InputError where there is none, or where its model cannot read the
    text."""
    earlier = {stage.name: stage for stage in context.stages}
    if name not in earlier:
        is_stage = any(stage.name == name for stage in context.schedule.stages)
        found = "the stage itself" if name == draft.name else "a later stage" if is_stage else "which is no stage"
        expected = f"an earlier stage ({', '.join(earlier)})" if earlier else "it in a stage after the first one"
        raise InputError(f"found {name!r}, {found}; expected {expected}", key=LOSS_KEY)
    _check_scorer(earlier[name], draft)
    return TeacherPlan(name, earlier[name].shape)


def _check_scorer(scorer: StageDraft, draft: StageDraft) -> None:
    shape, data, found = scorer.shape, draft.data, f"found {scorer.name!r}"
    if shape.head or FAMILIES[shape.family].objective != "next token":
        what = f"a model for {head_in_words(shape)}" if shape.head else f"a {shape.family}"
        raise InputError(f"{found}, {what}; expected a model that learns the next token", key=LOSS_KEY)
    if scorer.data.tokenizer_fingerprint != data.tokenizer_fingerprint:
        problem = f"{found}, which was trained with another tokenizer than {data.tokenizer!r}"
        raise InputError(f"{problem}; expected the same, for its loss is that of the same tokens", key=LOSS_KEY)
    largest = data.largest_token.token + 1 if data.largest_token else draft.shape.vocab_size
    ids = data.tokenizer_size or largest
    if shape.vocab_size < ids:
        problem = vocabulary_problem(shape.vocab_size, data.tokenizer, ids)
        raise InputError(f"{scorer.name!r}, its vocabulary: {problem}", key=LOSS_KEY)


def with_scorer_key(draft: StageDraft, chain: Sequence[StagePlan]) -> StageDraft:
    """The stage with the key of the stage before it whose loss sorts its documents."""
    if draft.scorer is None:
        return draft
    key = next(stage.key for stage in chain if stage.name == draft.scorer.name)
    curriculum = replaced(draft.curriculum, scorer=Scorer(draft.scorer.name, key))
    return replaced(draft, curriculum=curriculum, scorer=replaced(draft.scorer, key=key))
