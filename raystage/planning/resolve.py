"""From a schedule to stages with every value known: passes over a draft of each stage, then over all stages together.

A pass takes a draft and the context and returns the draft with more values filled in. It stands in the file of its
subject and raises InputError, with the stage's own key, for the first thing that does not fit.
"""

from __future__ import annotations

import math
from fractions import Fraction

from raystage.config.schedule import Schedule
from raystage.data.plan import MixturePart, MixturePlan
from raystage.data.tokenizer_names import BYTE_TOKENIZER
from raystage.data.trained_on import TrainingText
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.models.shape import num_params
from raystage.objectives.table import OBJECTIVES
from raystage.planning.adapters import fix_adapter
from raystage.planning.averaging import fix_averaging
from raystage.planning.branches.members import fix_members
from raystage.planning.counting import fix_units
from raystage.planning.draft import Context, StageDraft
from raystage.planning.inputs import Sources
from raystage.planning.length import fix_length
from raystage.planning.objective import check_documents, check_teacher, fix_objective
from raystage.planning.order import fix_curriculum
from raystage.planning.shapes import check_freezing, check_growth, fix_freezing, fix_shape
from raystage.planning.training import check_optimizer, check_run_rate, fix_training
from raystage.plans.gates import check_gates, planned_retries
from raystage.plans.initial import InitPlan
from raystage.plans.steps import sample_length
from raystage.units import SAMPLES, TOKENS


def resolve(schedule: Schedule, init: InitPlan | None = None, sources: Sources | None = None) -> tuple[StageDraft, ...]:
    """Every stage of a schedule with all of its values. init: the model that the first stage starts from.

    Every retry that `on_reject` may lead to is resolved too, to refuse it now and not after days of training. Raises
    InputError at the first thing that does not fit.
    """
    sources = sources or Sources()
    _check_names(schedule)
    check_gates(schedule)
    stages = _resolve(schedule, init, sources)
    for retry in planned_retries(schedule):
        try:
            _resolve(retry.schedule, init, sources)
        except InputError as error:
            raise retry.refused(error) from None
    return stages


def _resolve(schedule: Schedule, init: InitPlan | None, sources: Sources) -> tuple[StageDraft, ...]:
    check_optimizer(schedule.training.optimizer, schedule.training.optimizer)
    check_run_rate(schedule.training.lr_schedule, "training.lr_schedule")
    context = Context(schedule, init, sources)
    names, before = tuple(stage.name for stage in schedule.stages), None
    context = replaced(context, run_tokens=_run_tokens(context, names))
    for index in range(len(schedule.stages)):
        with context.errors_of(index):
            before = _begun(context, index, names, before)
            draft = context.continued(index, before)
            for fix in LATER_PASSES:
                draft = fix(draft, context)
        context = context.with_stages((*context.stages, draft))
    for fix_all in RUN_PASSES:
        context = fix_all(context)
    return fix_members(context, PASSES, (check_alignment,)).stages


def _begun(context: Context, index: int, names: tuple[str, ...], before: StageDraft | None) -> StageDraft:
    """Stage `index` after the first passes, made once for all schedules that differ in what these do not look at.

    names: of all stages. before: the stage before it, as this returned it.
    """
    schedule = context.schedule
    stage = schedule.stages[index]
    parts = (context.init, before, schedule.data, schedule.model, schedule.objective, stage.data, stage.model,
             stage.objective, stage.grow, stage.accept, stage.ensemble)  # fmt: skip

    def make() -> StageDraft:
        draft = context.draft(index)
        for fix in FIRST_PASSES:
            draft = fix(draft, context)
        return draft

    return context.sources.shared.found(names, parts, make)


def _run_tokens(context: Context, names: tuple[str, ...]) -> int | None:
    """The length of the run, where the schedule gives it. names: of all stages."""
    length = context.schedule.length
    if length is None or length.tokens is not None:
        return length and length.tokens
    before = None
    for index in range(len(names)):
        with context.errors_of(index):
            before = _begun(context, index, names, before)
        context = context.with_stages((*context.stages, before))
    return max(1, round(length.tokens_per_parameter * num_params(before.shape)))


def _check_names(schedule: Schedule) -> None:
    names = [stage.name for stage in schedule.stages]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"found {name!r} a second time; expected a name of its own", key=f"stages[{index}].name")


def read_data(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the text that the stage reads."""
    reads = OBJECTIVES[draft.stage.objective.name].reads
    return replaced(draft, data=context.sources.data(draft.stage.data, reads))


def find_evaluated(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the source of an earlier stage that `accept.forgetting_below` asks for."""
    rule = draft.accept.forgetting_below if draft.accept is not None else None
    own = draft.data.parts
    if rule is None or any(part.name == rule.source for part in own):
        return draft
    earlier = [part for stage in reversed(context.stages) for part in stage.data.parts if part.name]
    found = next((part for part in earlier if part.name == rule.source), None)
    if found is None:
        names = ", ".join(dict.fromkeys(part.name for part in (*own, *earlier) if part.name))
        expected = (
            f"a source of a mixture up to here: {names}" if names else "a mixture in this stage or an earlier one"
        )
        raise InputError(f"found {rule.source!r}; expected {expected}", key="accept.forgetting_below.source")
    if any(part.data.content == found.data.content for part in own):
        return draft  # the same text under another name
    return replaced(draft, also_evaluated=(replaced(found, weight=Fraction(0)),))


# --- passes over all stages together ------------------------------------------------------------


def check_held_out(context: Context) -> Context:
    """Refuse to evaluate a model on documents that it was trained on before, or that another source of the same stage
    is trained on."""
    trained: dict[str, tuple[StageDraft, MixturePart]] = {}  # by content the first that was trained on
    for stage in context.stages:
        for part in stage.data.parts:
            if part.weight:
                trained.setdefault(part.data.content, (stage, part))
        for index, part in enumerate((*stage.data.parts, *stage.also_evaluated)):
            for earlier, other in trained.values():
                # Splitting a corpus takes a quarter of a plan's time, and one text needs no comparison.
                count = 0 if part.data.text == other.data.text else context.sources.overlap(part.data, other.data)
                if count:
                    by = f"that stage {earlier.name!r} was trained on" if earlier is not stage else "that are read"
                    source = f" in its source {other.name!r}" if other.name else ""
                    raise _held_out_error(context, stage, index, count, by + source, other.data.text)
    return context


def _check_not_in(text: TrainingText, by: str, stage: StageDraft, context: Context) -> None:
    """by: who was trained on the text, in words."""
    for index, part in enumerate(stage.data.parts):
        count = text.count_in(context.sources.split(part.data)[1])
        if count:
            raise _held_out_error(context, stage, index, count, by, text)


def check_held_out_of_others(context: Context) -> Context:
    """Refuse to evaluate a model on documents that the model in `init` or a teacher was trained on, as far as that is
    known."""
    others = [(0, "the model in init", context.init)] if context.init else []
    taught = [(stage, one) for stage in context.stages if stage.teacher for one in stage.teacher.all]
    others += [(stage.index, f"the teacher of {stage.name!r}", one.init) for stage, one in taught if one.init]
    for first, who, init in others:
        for text in init.trained_on.texts:
            for stage in context.stages[first:]:
                _check_not_in(text, f"that {who} was trained on", stage, context)
    return context


def _held_out_error(
    context: Context, stage: StageDraft, index: int, count: int, by: str, other: TrainingText
) -> InputError:
    """About the held-out documents of a source of a stage; index: among those that it is evaluated on."""
    part = (*stage.data.parts, *stage.also_evaluated)[index]
    documents = f"{count} document{'s' if count > 1 else ''} {by}"
    key, problem = "validation_fraction", f"found {part.data.validation_fraction:g}, which holds out {documents}"
    expected = "expected other text to hold out"
    if part.data.options.validation_path:
        key = "validation_split" if part.data.options.validation_split else "validation_path"
        problem = f"found {documents}"
    elif other.validation_fraction is not None:
        expected = f"expected at most the {other.validation_fraction:g} there"
    if index >= len(stage.data.parts):
        return context.error(stage.index, "accept.forgetting_below", f"{part.name}: {problem}; {expected}")
    return context.error(stage.index, part_key(stage, index, key), f"{problem}; {expected}")


def part_key(stage: StageDraft, index: int, name: str) -> str:
    """The key of a source of a stage: 'data.path', or 'data.mixture[1].path'."""
    return f"data.mixture[{index}].{name}" if isinstance(stage.data, MixturePlan) else f"data.{name}"


def fix_windows(context: Context) -> Context:
    """Set the windows of text that all stages read: as long as the longest context, a multiple of every other one.

    So the text at a token position of the run is the same in every stage. Where the context changes, no text is read
    twice or left out, except for less than one sequence where a longer context begins inside of a shorter one.
    """
    samples = tuple(replaced(stage, window=1) if stage.unit == SAMPLES else stage for stage in context.stages)
    texts = [stage for stage in context.stages if stage.unit == TOKENS]
    longest = max((stage.shape.context_length for stage in texts), default=1)
    for stage in texts:
        length = stage.shape.context_length
        if longest % length:
            found = f"found {length} in a run whose longest context is {longest}"
            expected = f"expected a divisor of that, such as {_largest_divisor(longest, length)}"
            problem = f"{found}; {expected}: all stages read the same windows of text"
            raise context.error(stage.index, "model.context_length", problem)
    return context.with_stages(tuple(stage if stage.window else replaced(stage, window=longest) for stage in samples))


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return max(one for one in (*small, *(number // one for one in small)) if one <= most)


def check_alignment(context: Context) -> Context:
    """Refuse, in a run with a mixture or a curriculum, a batch that may end within a sequence of a later step.

    Without this a stage might begin within a sequence, and less than one sequence would be read twice. So every batch
    is a multiple of the context lengths of all later steps, also where a stage ends early.
    """
    what = _reads_by_cursors(context)
    if what is None:
        return context
    later = 1  # the least common multiple of the context lengths from here on
    for stage in reversed(context.stages):
        for segment in reversed(stage.step_schedule.segments):
            later = math.lcm(later, sample_length(segment.context_length, stage.unit))
            batch = segment.batch
            if batch % later:
                name = f"global_batch_{stage.unit}"
                key = f"training.{name}" if batch == stage.training.global_batch else f"training.ramp.{name}"
                problem = f"found a batch of {batch} in a run with a {what}, which later reads longer sequences"
                works = f"expected a multiple of {later}, such as {-(-batch // later) * later}"
                raise context.error(stage.index, key, f"{problem}; {works}: then no sequence begins within another")
    return context


def _reads_by_cursors(context: Context) -> str | None:
    """Why every text has a cursor; None where all stages read at the run's position."""
    if any(isinstance(stage.data, MixturePlan) for stage in context.stages):
        return "mixture"
    return "curriculum" if any(stage.curriculum for stage in context.stages) else None


def check_text(context: Context) -> Context:
    """Refuse text that is shorter than one sequence with any tokenizer: there are hardly more tokens than bytes."""
    for stage in context.stages:
        for index, part in enumerate(stage.data.parts):
            problem = text_problem(stage, part)
            if problem is not None:
                raise context.error(stage.index, part_key(stage, index, "path"), problem)
    return context


def text_problem(stage: StageDraft, part: MixturePart) -> str | None:
    """What is wrong with a text that is too short for a sequence; None otherwise."""
    if part.data.samples is not None:
        return None  # every sample is a row of its own
    own_end = 1 if part.data.tokenizer == BYTE_TOKENIZER else 2  # a document's end, and for some its beginning
    sides = (
        (part.data.train, stage.window if part.weight else 0, "to train on"),
        (part.data.held_out, stage.shape.context_length, "to hold out"),
    )
    for text, length, what in sides:
        tokens = text.num_bytes + own_end * text.documents if text.num_tokens is None else text.num_tokens
        if tokens <= length:
            in_bytes = f"{text.num_bytes} bytes {what}, at most {tokens} tokens"
            found = f"found {in_bytes if text.num_tokens is None else f'{tokens} tokens {what}'}"
            return f"{found}; expected more than a sequence's {length} (context_length)"
    return None


# Over each stage in turn, with the stages before it in the context. The first ones do not look at its length and its
# training.
FIRST_PASSES = (read_data, find_evaluated, fix_objective, check_documents, fix_shape, check_teacher)
LATER_PASSES = (
    fix_units,
    fix_training,
    fix_freezing,
    fix_adapter,
    fix_length,
    fix_averaging,
    fix_curriculum,
    check_growth,
    check_freezing,
)
PASSES = (*FIRST_PASSES, *LATER_PASSES)
# Over all stages together.
RUN_PASSES = (check_held_out, check_held_out_of_others, fix_windows, check_alignment, check_text)
