"""The objective of a stage, resolved: its options complete, and what it asks of the model and the tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence

from raystage.config.objective import ALL_TOKENS, STANDARD, ObjectiveSection
from raystage.config.schedule import Init
from raystage.config.stages.ensemble import member_name
from raystage.data.plan import DataPlan, vocabulary_problem
from raystage.data.tokenizer_names import BYTE_TOKENIZER
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.growth.explain import head_in_words
from raystage.models import hub
from raystage.models.families import FAMILIES
from raystage.models.own import BARE
from raystage.models.table import Family
from raystage.objectives.plan import NEXT_TOKEN, ObjectivePlan
from raystage.objectives.table import OBJECTIVES, ObjectiveSpec
from raystage.planning.draft import Context, StageDraft
from raystage.planning.inputs import Sources
from raystage.planning.shape.user_functions import code_of
from raystage.plans.initial import TEACHER_KEY, TeacherPlan
from raystage.plans.stage import StagePlan
from raystage.sources.table import SOURCES
from raystage.units import shown
from raystage.user_code import check_call


def fix_objective(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the objective, whether the model can learn it, the ids that it adds to the tokenizer's, and the teacher."""
    written = draft.stage.objective
    _check_options(written)
    _check_family(written, draft.stage.model.family)
    find = _FINDERS.get(written.name)
    plan = find(written, draft, context.sources) if find else ObjectivePlan(written.name)
    teacher = _find_teachers(written.teachers, draft, context) if "teacher" in plan.entry.needs else None
    return replaced(draft, objective=plan, teacher=teacher)


_MASK = "data.window.mask"
# What the models of a family learn, in a sentence.
_LEARNED = {"next token": "the next token"}


def _check_options(written: ObjectiveSection) -> None:
    """Refuse an option of another objective."""
    own = OBJECTIVES[written.name].options
    for other in OBJECTIVES.values():
        for field in other.options:
            if field not in own and getattr(written, field) != getattr(STANDARD, field):
                found = f"found {shown(getattr(written, field))} with {written.name}"
                raise InputError(f"{found}; expected it with name: {other.name}", key=f"objective.{field}")


def _check_family(written: ObjectiveSection, family: str) -> None:
    entry, table = OBJECTIVES[written.name], FAMILIES[family]
    if _learns(table, entry):
        return
    fitting = [one.name for one in OBJECTIVES.values() if _learns(table, one)]
    others = [name for name, one in FAMILIES.items() if name not in BARE and _learns(one, entry)]
    what = f"learns {_LEARNED.get(table.objective, table.objective)}" if table.objective else "reads images"
    expected = f"{' or '.join(fitting)}, or " if fitting else ""
    problem = f"found {written.name} for a {family}, which {what}; expected {expected}a family that learns it"
    raise InputError(f"{problem} ({', '.join(others)})", key="objective")


def _learns(family: Family, entry: ObjectiveSpec) -> bool:
    """Whether a family's models can have the head that an objective needs. A model without a table may learn all."""
    if family.name in BARE:
        return True
    return entry.head in family.heads if entry.head else entry.model == family.objective


def check_documents(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: whether documents can be kept apart, where the stage asks for it."""
    if not draft.within_documents:
        return draft
    if not draft.objective.entry.keeps_documents:
        able = [one.name for one in OBJECTIVES.values() if one.keeps_documents]
        problem = f"found document with the objective {draft.objective.name}"
        raise InputError(f"{problem}; expected one that keeps documents apart ({', '.join(able)})", key=_MASK)
    family = draft.stage.model.family
    if not FAMILIES[family].has_attention:
        why = "which nothing keeps apart" if family in BARE else "whose state goes on from document to document"
        problem = f"found document for a {family}, {why}"
        raise InputError(f"{problem}; expected a family with attention, or none", key=_MASK)
    for part in draft.data.parts:
        data = part.data
        file = SOURCES[data.source].without_ends(context.sources.corpus(data.source, data.path, data.options))
        if file is not None:
            problem = f"found document, but nothing says where the documents in {file} end"
            raise InputError(f"{problem}; expected data.end_token, or an index beside the file", key=_MASK)
    return draft


# --- masked_lm ----------------------------------------------------------------------------------


def _masked_lm(written: ObjectiveSection, draft: StageDraft, sources: Sources) -> ObjectivePlan:
    if draft.data.tokenizer_size is None:
        problem = f"found the tokenizer {draft.data.tokenizer!r}, whose files are not on this machine"
        raise InputError(f"{problem}; expected a folder, or one that was downloaded before", key="data.tokenizer")
    mask = _mask_id(written.mask_token, draft.data, sources)
    options = {"mask_share": written.mask_share, "mask_id": mask, "num_ids": draft.data.tokenizer_size}
    return ObjectivePlan(written.name, options, options, num_ids=max(mask + 1, draft.data.tokenizer_size))


def _mask_id(token: str | None, data: DataPlan, sources: Sources) -> int:
    """The id of the mask token: as written, else the tokenizer's own, else a new one after its largest."""
    known = {} if data.tokenizer == BYTE_TOKENIZER else sources.tokenizer(data.tokenizer).tokens or {}
    if token is None:
        own = None if data.tokenizer == BYTE_TOKENIZER else sources.tokenizer(data.tokenizer).mask
        return known.get(own, data.tokenizer_size)
    if token not in known:
        problem = f"found {token!r}, which is no token of {data.tokenizer!r}"
        raise InputError(f"{problem}; expected one that is, or none for a new id", key="objective.mask_token")
    return known[token]


# --- own ----------------------------------------------------------------------------------------


def _own(written: ObjectiveSection, draft: StageDraft, sources: Sources) -> ObjectivePlan:
    if written.function is None:
        problem = "missing; expected the loss of own, for example function: my.losses:smooth"
        raise InputError(problem, key="objective.function")
    code = {field: code_of(getattr(written, field), f"objective.{field}", sources) for field in ("function", "targets")}
    if sources.with_code:
        _check_call(written.function, 2, written, "function")
        if written.targets:
            _check_call(written.targets, 1, written, "targets")
    options = {"function": written.function, "targets": written.targets, "options": written.options}
    return ObjectivePlan(written.name, options, {"code": code, "options": written.options})


def _check_call(reference: str, arguments: int, written: ObjectiveSection, field: str) -> None:
    try:
        check_call(reference, arguments, written.options)
    except InputError as error:
        raise InputError(error.problem, key=f"objective.{field}") from None


# --- distillation -------------------------------------------------------------------------------


def check_teacher(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: whether the teacher can read what the model reads, and says the same of it."""
    if draft.teacher is None:
        return draft
    for one in draft.teacher.all:
        _check_teacher(one, draft)
        _check_tokenizer(one, draft, context)
    return draft


def _check_teacher(one: TeacherPlan, draft: StageDraft) -> None:
    teacher, shape, name = one.shape, draft.shape, one.name
    if teacher.head or FAMILIES[teacher.family].objective != draft.objective.entry.model:
        what = f"a model for {head_in_words(teacher)}" if teacher.head else f"a {teacher.family}"
        problem = f"found {name!r}, {what}; expected a model that learns the next token"
        raise InputError(problem, key=TEACHER_KEY)
    if teacher.context_length < shape.context_length:
        problem = f"found {name!r}, whose context has {teacher.context_length} tokens"
        raise InputError(f"{problem}; expected at least the model's {shape.context_length}", key=TEACHER_KEY)
    ids = draft.data.tokenizer_size or shape.vocab_size
    if teacher.vocab_size < ids:
        problem = vocabulary_problem(teacher.vocab_size, draft.data.tokenizer, ids)
        raise InputError(f"{name!r}, its vocabulary: {problem}", key=TEACHER_KEY)


def _check_tokenizer(one: TeacherPlan, draft: StageDraft, context: Context) -> None:
    """Refuse a teacher that was trained with another tokenizer, as far as that is known."""
    init, data = one.init, draft.data
    if init is None:
        # Further members read the text of their stage, which is compared itself.
        known = next((stage.data.tokenizer_fingerprint for stage in context.stages if stage.name == one.name), None)
    else:
        known = init.tokenizer
    differs = known not in (None, data.tokenizer_fingerprint)
    if init is not None and not init.is_checkpoint and data.tokenizer != BYTE_TOKENIZER:
        its, ours = context.sources.tokenizer(init.path).tokens, context.sources.tokenizer(data.tokenizer).tokens
        differs = its is not None and ours is not None and any(its.get(token) != ours[token] for token in ours)
    if differs:
        problem = f"found {one.name!r}, which was trained with another tokenizer than {data.tokenizer!r}"
        raise InputError(f"{problem}; expected the same, for they are compared token by token", key=TEACHER_KEY)


def with_key(draft: StageDraft, chain: Sequence[StagePlan]) -> StageDraft:
    """The stage with the keys of its teachers, as far as they are stages before it."""
    if draft.teacher is None or _is_from_elsewhere(draft.teacher):
        return draft
    keys = {stage.name: stage.key for stage in chain}
    first, *others = (one if one.init else replaced(one, key=keys[one.name]) for one in draft.teacher.all)
    return replaced(draft, teacher=replaced(first, others=tuple(others)))


def alone(draft: StageDraft) -> StageDraft:
    """The stage as a baseline has it: without a teacher that only the staged run has trained."""
    if draft.teacher is None or _is_from_elsewhere(draft.teacher):
        return draft
    return replaced(draft, objective=NEXT_TOKEN, teacher=None)


def _is_from_elsewhere(teacher: TeacherPlan) -> bool:
    return all(one.init is not None for one in teacher.all)


def _distillation(written: ObjectiveSection, draft: StageDraft, sources: Sources) -> ObjectivePlan:
    if written.teacher is None:
        problem = "missing; expected the model to learn from: an earlier stage, a folder or a hub name"
        raise InputError(problem, key=TEACHER_KEY)
    top_k = None if written.top_k == ALL_TOKENS else written.top_k
    options = {"temperature": written.temperature, "alpha": written.alpha, "top_k": top_k}
    return ObjectivePlan(written.name, options, options)


def _find_teachers(names: Sequence[str], draft: StageDraft, context: Context) -> TeacherPlan:
    first, *others = (one for name in names for one in _with_members(_find_teacher(name, draft, context), context))
    return replaced(first, others=tuple(others))


def _with_members(teacher: TeacherPlan, context: Context) -> tuple[TeacherPlan, ...]:
    """All members of the stage that teaches, if it has several."""
    stage = next((one for one in context.stages if one.name == teacher.name and teacher.init is None), None)
    if stage is None or stage.stage.ensemble is None:
        return (teacher,)
    numbers = range(1, 1 + stage.stage.ensemble.members)
    return tuple(replaced(teacher, name=member_name(stage.name, number)) for number in numbers)


def _find_teacher(name: str, draft: StageDraft, context: Context) -> TeacherPlan:
    earlier = {stage.name: stage for stage in context.stages}
    if name in earlier:
        return TeacherPlan(name, earlier[name].shape)
    is_stage = any(stage.name == name for stage in context.schedule.stages)
    if is_stage or not (os.path.isdir(name) or ("/" in name and hub.is_name(name))):
        found = "which is no stage and no folder here"
        if is_stage:
            found = "the stage itself" if name == draft.name else "a later stage"
        stages = f"an earlier stage ({', '.join(earlier)}), " if earlier else ""
        raise InputError(f"found {name!r}, {found}; expected {stages}a folder or a hub name", key=TEACHER_KEY)
    try:
        init = context.sources.init(Init.model_validate({"from": name}))
    except InputError as error:
        where = None if error.key == "init.from" else error.key
        raise InputError(str(InputError(error.problem, key=where, file=error.file)), key=TEACHER_KEY) from None
    return TeacherPlan(name, init.shape, init=init)


# --- samples ------------------------------------------------------------------------------------


def _classification(written: ObjectiveSection, draft: StageDraft, sources: Sources) -> ObjectivePlan:
    classes = draft.data.samples.classes
    smoothing = {"label_smoothing": written.label_smoothing} if written.label_smoothing else {}
    return ObjectivePlan(written.name, {"classes": classes, **smoothing}, {"classes": list(classes), **smoothing})


def _denoising(written: ObjectiveSection, draft: StageDraft, sources: Sources) -> ObjectivePlan:
    is_masked = "mask_share" in written.model_fields_set
    if is_masked and written.noise is not None:
        problem = f"found {written.noise:g} beside mask_share {written.mask_share:g}"
        raise InputError(f"{problem}; expected one of them", key="objective.noise")
    noise = None if is_masked else written.noise or DEFAULT_NOISE
    options = {"noise": noise, "mask_share": written.mask_share if is_masked else None}
    # Where patches are not said, as of an mlp, each pixel is one.
    return ObjectivePlan(written.name, {**options, "patch_size": draft.stage.model.patch_size or 1}, options)


DEFAULT_NOISE = 0.3

_FINDERS = {
    "masked_lm": _masked_lm,
    "own": _own,
    "distillation": _distillation,
    "classification": _classification,
    "denoising": _denoising,
}
