"""From a schedule to stages with every value known: passes over a draft of each stage, then over all stages together.

A pass takes a draft and the context and returns the draft with more values filled in. It stands in the file of its
subject and raises InputError, with the stage's own key, for the first thing that does not fit.
"""

from __future__ import annotations

import math
from dataclasses import replace

from raystage.config.schedule import Schedule
from raystage.data.tokenizer_names import BYTE_TOKENIZER
from raystage.errors import InputError
from raystage.plans.draft import Context, StageDraft
from raystage.plans.gates import check_gates, planned_retries
from raystage.plans.initial import InitPlan
from raystage.plans.inputs import Sources
from raystage.plans.length import fix_length
from raystage.plans.objective import fix_objective
from raystage.plans.shapes import check_growth, fix_freezing, fix_shape
from raystage.plans.training import check_optimizer, check_run_rate, fix_training


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
    for index in range(len(schedule.stages)):
        draft = context.draft(index)
        with context.errors_of(index):
            for fix in PASSES:
                draft = fix(draft, context)
        context = context.with_stages((*context.stages, draft))
    for fix_all in RUN_PASSES:
        context = fix_all(context)
    return context.stages


def _check_names(schedule: Schedule) -> None:
    names = [stage.name for stage in schedule.stages]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"found {name!r} a second time; expected a name of its own", key=f"stages[{index}].name")


def read_data(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the text that the stage reads."""
    return replace(draft, data=context.sources.data(draft.stage.data))


# --- passes over all stages together ------------------------------------------------------------


def check_held_out(context: Context) -> Context:
    """Refuse to evaluate a model on documents that an earlier stage was trained on."""
    seen: list[StageDraft] = []  # for each text the first stage that was trained on it
    for stage in context.stages:
        if any(stage.data.text == earlier.data.text for earlier in seen):
            continue
        # Splitting a corpus takes a quarter of a plan's time, and the first text has nothing to be compared with.
        for earlier in seen:
            count = context.sources.split(stage.data)[1].count_shared(context.sources.split(earlier.data)[0])
            if count:
                by = f"that stage {earlier.name!r} was trained on"
                raise _held_out_error(context, stage, count, by, earlier.data.text.validation_fraction)
        seen.append(stage)
    return context


def check_held_out_of_init(context: Context) -> Context:
    """Refuse to evaluate a model on documents that the model in `init` was trained on, as far as that is known."""
    for text in context.init.trained_on.texts if context.init else ():
        for stage in context.stages:
            count = text.count_in(context.sources.split(stage.data)[1])
            if count:
                by = "that the model in init was trained on"
                raise _held_out_error(context, stage, count, by, text.validation_fraction)
    return context


def _held_out_error(context: Context, stage: StageDraft, count: int, by: str, fraction: float | None) -> InputError:
    """fraction: the share that the other text held out; None where it had separate text to hold out."""
    documents = f"{count} document{'s' if count > 1 else ''} {by}"
    key, problem = "data.validation_fraction", f"found {stage.data.validation_fraction:g}, which holds out {documents}"
    expected = "expected other text to hold out"
    if stage.data.options.validation_path:
        key = "data.validation_split" if stage.data.options.validation_split else "data.validation_path"
        problem = f"found {documents}"
    elif fraction is not None:
        expected = f"expected at most the {fraction:g} there"
    return context.error(stage.index, key, f"{problem}; {expected}")


def fix_windows(context: Context) -> Context:
    """Set the windows of text that all stages read: as long as the longest context, a multiple of every other one.

    So the text at a token position of the run is the same in every stage. Where the context changes, no text is read
    twice or left out, except for less than one sequence where a longer context begins inside of a shorter one.
    """
    longest = max(stage.shape.context_length for stage in context.stages)
    for stage in context.stages:
        length = stage.shape.context_length
        if longest % length:
            found = f"found {length} in a run whose longest context is {longest}"
            expected = f"expected a divisor of that, such as {_largest_divisor(longest, length)}"
            problem = f"{found}; {expected}: all stages read the same windows of text"
            raise context.error(stage.index, "model.context_length", problem)
    return context.with_stages(tuple(replace(stage, window_tokens=longest) for stage in context.stages))


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return max(one for one in (*small, *(number // one for one in small)) if one <= most)


def check_text(context: Context) -> Context:
    """Refuse text that is shorter than one sequence with any tokenizer: there are hardly more tokens than bytes."""
    for stage in context.stages:
        own_end = 1 if stage.data.tokenizer == BYTE_TOKENIZER else 2  # a document's end, and for some its beginning
        sides = (
            (stage.data.train, stage.window_tokens, "to train on"),
            (stage.data.held_out, stage.shape.context_length, "to hold out"),
        )
        for text, length, what in sides:
            tokens = text.num_bytes + own_end * text.documents if text.num_tokens is None else text.num_tokens
            if tokens <= length:
                in_bytes = f"{text.num_bytes} bytes {what}, at most {tokens} tokens"
                found = f"found {in_bytes if text.num_tokens is None else f'{tokens} tokens {what}'}"
                problem = f"{found}; expected more than a sequence's {length} (context_length)"
                raise context.error(stage.index, "data.path", problem)
    return context


# Over each stage in turn, with the stages before it in the context.
PASSES = (read_data, fix_objective, fix_shape, fix_training, fix_length, check_growth, fix_freezing)
# Over all stages together.
RUN_PASSES = (check_held_out, check_held_out_of_init, fix_windows, check_text)
