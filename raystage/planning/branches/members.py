"""The members of ensembles: each is its stage with other values, resolved like any stage, on a branch of the run.

With `vary: data` the weights are drawn as in the first member and only the order of the text differs: both seeds matter
by themselves (Dodge et al., 2002.06305).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from raystage.config.conditions import parse_relative
from raystage.config.schedule import Schedule, parse
from raystage.config.stages.ensemble import EnsembleSection, member_name
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.planning.draft import Context, StageDraft
from raystage.plans.gates import overridden
from raystage.units import shown

Pass = Callable[[StageDraft, Context], StageDraft]
RunPass = Callable[[Context], Context]
# What a member is without: gates answer for the stage, which alone has members and is delivered.
_WITHOUT = ("ensemble", "deliver", "on_reject")


def fix_members(context: Context, passes: Sequence[Pass], run_passes: Sequence[RunPass]) -> Context:
    """The members of every stage that has an ensemble. passes, run_passes: those that a member has to go through.

    Raises InputError where a member cannot be planned, or would be another model than its stage.
    """
    names = {stage.name for stage in context.stages}
    stages = []
    for index, stage in enumerate(context.stages):
        written = stage.stage.ensemble
        numbers = range(2, 1 + written.members) if written else ()
        for name in (member_name(stage.name, number) for number in numbers):
            if name in names:
                problem = f"found beside a stage {name!r}, which is the name of a member; expected another name there"
                raise InputError(problem, key=f"stages[{index}].ensemble")
        members = tuple(_member(context, stage, number, passes, run_passes) for number in numbers)
        stages.append(replaced(stage, members=members) if members else stage)
    return context.with_stages(tuple(stages))


def _member(
    context: Context, stage: StageDraft, number: int, passes: Sequence[Pass], run_passes: Sequence[RunPass]
) -> StageDraft:
    """Member `number` of a stage."""
    index, written = stage.index, stage.stage.ensemble
    try:
        schedule = varied(context.schedule, index, stage.seed, written, number)
        inner = Context(schedule, context.init, context.sources, context.stages[:index])
        draft = inner.draft(index)
        with inner.errors_of(index):
            for fix in passes:
                draft = fix(draft, inner)
        _check_alike(draft, stage)
        # The windows of text are those of the whole run.
        draft = replaced(draft, window=stage.window)
        for check in run_passes:
            check(inner.with_stages((*inner.stages, draft)))
    except InputError as error:
        key = f"stages[{index}].ensemble" + (".set" if written.set else "")
        raise InputError(f"member {number} cannot be planned: {error}", key=key) from None
    named = draft.stage.model_copy(update={"name": member_name(stage.name, number)})
    weights = stage.seed if written.vary == "data" else None
    return replaced(draft, stage=named, weights_seed=weights)


def varied(schedule: Schedule, index: int, seed: int, written: EnsembleSection, number: int) -> Schedule:
    """The schedule whose stage `index` is member `number` of its ensemble, from 2. seed: of the stage.

    Raises InputError where that is no schedule.
    """
    content = schedule.content()
    content["stages"][index] = {key: value for key, value in content["stages"][index].items() if key not in _WITHOUT}
    if written.vary != "schedule":
        return parse(overridden(content, index, {"seed": seed + number - 1}, 1))
    relative, own = _changes(written.set, number)
    return parse(overridden(overridden(content, index, relative, number - 1), index, own, 1))


def _changes(written: Mapping[str, Any], number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What member `number` changes: by relative values, which are applied once more with every member, and by values of
    its own."""
    relative = {key: value for key, value in written.items() if parse_relative(value) is not None}
    of_member = {key: value[number - 2] if isinstance(value, list) else value for key, value in written.items()}
    return relative, {key: value for key, value in of_member.items() if key not in relative}


def _check_alike(draft: StageDraft, stage: StageDraft) -> None:
    """Refuse a member that cannot answer together with its stage: of another shape, on other text, judged otherwise."""
    for name in (field.name for field in fields(stage.shape)):
        if (found := getattr(draft.shape, name)) != (expected := getattr(stage.shape, name)):
            problem = f"found {shown(found)}; expected {shown(expected)}: all members have the shape of the stage"
            raise InputError(problem, key=f"model.{name}")
    if draft.objective.judge.name != stage.objective.judge.name:
        problem = f"found {draft.objective.name}, which is judged by another loss than {stage.objective.name}"
        raise InputError(f"{problem}; expected one that is judged by the same", key="objective")
    if {part.data.content for part in draft.data.parts} != {part.data.content for part in stage.data.parts}:
        problem = "found other text than that of the stage; expected the same: what one member is trained on, no other "
        raise InputError(f"{problem}may hold out", key="data")
