"""The unit that a stage counts in, tokens or samples, held against what is written."""

from __future__ import annotations

from collections.abc import Iterator

from raystage.config.conditions import Until
from raystage.config.stage import Stage
from raystage.config.training import Evaluate, Training
from raystage.config.types import Duration
from raystage.data.plan import MixturePlan
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.planning.draft import Context, StageDraft
from raystage.plans.cadence import AMOUNTS
from raystage.units import SAMPLES, TOKENS, Unit


def fix_units(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: every amount in the unit of the stage's objective, and passes over the data as tokens or samples.

    What the file sets for stages that count otherwise is left out. The wrong unit in a stage is an error.
    """
    _check_order(draft, context)
    unit, other = draft.unit, TOKENS if draft.unit == SAMPLES else SAMPLES
    stage, written = draft.stage, context.schedule.stages[draft.index]
    for key, part in _lengths(stage):
        _check_length(part, key, unit, other, stage)
    _check_batch(written.training, stage.training, unit, other, stage)
    training = _in_unit(stage.training, unit, other)
    _check_until(stage.until, "until", unit, other, stage)
    until = _without_share(_without_epochs(stage.until, draft), draft, context.run_tokens)
    if training is stage.training and until is stage.until:
        return draft
    return replaced(draft, stage=stage.model_copy(update={"training": training, "until": until}))


def _check_order(draft: StageDraft, context: Context) -> None:
    """Refuse a second change of the unit, after which positions of the run would come a second time."""
    units = [stage.unit for stage in context.stages] + [draft.unit]
    changes = [index for index in range(1, len(units)) if units[index] != units[index - 1]]
    if len(changes) > 1 and changes[-1] == draft.index:
        problem = f"found {draft.objective.name}, which counts {draft.unit} again after stages that count {units[-2]}"
        raise InputError(f"{problem}; expected one change of the unit in a run", key="objective")
    if changes and not draft.own_rate:
        problem = f"missing; the run counts {draft.unit} from stage {_name(context, draft, changes[0])!r} on"
        key = f"stages[{draft.index}].training.lr_schedule"  # of the stage, though other stages may have none
        raise InputError(f"{problem}, and each stage from there needs a rate of its own", key=key)


def _name(context: Context, draft: StageDraft, index: int) -> str:
    return draft.name if index == len(context.stages) else context.stages[index].name


def _lengths(stage: Stage) -> Iterator[tuple[str, Duration]]:
    """The lengths that a stage may have, with their keys."""
    if stage.grow is not None and stage.grow.rewarm is not None:
        yield "grow.rewarm", stage.grow.rewarm
    if stage.freeze is not None and stage.freeze.lasts is not None:
        yield "freeze.for", stage.freeze.lasts
    if stage.on_reject is not None and stage.on_reject.extend is not None:
        yield "on_reject.extend", stage.on_reject.extend
    ramp = stage.training.ramp
    for name in type(ramp).OVER if ramp else ():
        if getattr(ramp, name) is not None:
            yield f"training.ramp.{name}.over", getattr(ramp, name).over


def _check_length(part: Duration, key: str, unit: Unit, other: Unit, stage: Stage) -> None:
    if getattr(part, other) is not None:
        raise InputError(_wrong(other, unit, stage), key=f"{key}.{other}")
    if getattr(part, unit) is None:
        field = type(part).model_fields[unit]
        raise InputError(f"missing; expected for example {unit}: {field.examples[0]}", key=f"{key}.{unit}")


def _wrong(other: Unit, unit: Unit, stage: Stage) -> str:
    return f"found {other} in a stage of {stage.objective.name}, which counts {unit}; expected {unit}"


def _check_batch(written: Training, training: Training, unit: Unit, other: Unit, stage: Stage) -> None:
    """A batch or an evaluation in the wrong unit that no other stage could mean."""
    own, wrong = f"global_batch_{unit}", f"global_batch_{other}"
    if wrong in written.model_fields_set or (getattr(training, own) is None and getattr(training, wrong) is not None):
        raise InputError(f"found in a stage of {stage.objective.name}, which counts {unit}; expected {own}",
                         key=f"training.{wrong}")  # fmt: skip
    if other in written.evaluate.model_fields_set:
        raise InputError(_wrong(other, unit, stage), key=f"training.evaluate.{other}")
    if training.ramp is not None and getattr(training.ramp, wrong) is not None:
        raise InputError(_wrong(other, unit, stage), key=f"training.ramp.{wrong}")


def _in_unit(training: Training, unit: Unit, other: Unit) -> Training:
    """Without what the file sets for stages that count in the other unit."""
    evaluate = training.evaluate
    if unit == SAMPLES and evaluate.samples is None:
        evaluate = _with_default(evaluate, AMOUNTS[SAMPLES].most)
    elif unit == TOKENS and evaluate.samples is not None:
        evaluate = _with_default(evaluate, None)
    wrong = f"global_batch_{other}"
    if getattr(training, wrong) is None and evaluate is training.evaluate:
        return training
    return training.model_copy(update={wrong: None, "evaluate": evaluate})


def _with_default(evaluate: Evaluate, samples: int | None) -> Evaluate:
    """The section with an amount of samples that nobody has written."""
    values = {name: getattr(evaluate, name) for name in Evaluate.model_fields}
    return Evaluate.model_construct(evaluate.model_fields_set - {SAMPLES}, **{**values, SAMPLES: samples})


# --- until --------------------------------------------------------------------------------------


def _check_until(until: Until, key: str, unit: Unit, other: Unit, stage: Stage) -> None:
    if getattr(until, other) is not None:
        raise InputError(_wrong(other, unit, stage), key=f"{key}.{other}")
    if unit == SAMPLES and until.mixing is not None:
        raise InputError(f"found in a stage of {stage.objective.name}, which counts samples; expected samples",
                         key=f"{key}.mixing")  # fmt: skip
    for name in ("any", "all"):
        for index, part in enumerate(getattr(until, name) or ()):
            _check_until(part, f"{key}.{name}[{index}]", unit, other, stage)


def _without_epochs(until: Until, draft: StageDraft, key: str = "until") -> Until:
    """With passes over the data as tokens or samples; the smaller one where both are given."""
    changes: dict[str, object] = {}
    if until.epochs is not None:
        count = _of_epochs(until.epochs, draft, f"{key}.epochs")
        given = getattr(until, draft.unit)
        changes = {"epochs": None, draft.unit: count if given is None else min(given, count)}
    for name in ("any", "all"):
        parts = getattr(until, name)
        if parts is not None:
            found = tuple(_without_epochs(one, draft, f"{key}.{name}[{at}]") for at, one in enumerate(parts))
            changes |= {name: found} if found != parts else {}
    return until.model_copy(update=changes) if changes else until


def _of_epochs(epochs: float, draft: StageDraft, key: str) -> int:
    """The tokens or samples of so many passes over the data that the stage is trained on."""
    data, unit = draft.data, draft.unit
    if isinstance(data, MixturePlan):
        problem = f"found {epochs:g} for a mixture, whose sources end at different times"
        raise InputError(f"{problem}; expected {unit}", key=key)
    if unit == SAMPLES:
        return max(1, round(epochs * data.train.documents))
    if data.train_tokens is None:
        problem = f"found {epochs:g}, but how many tokens the text has is known only once it is tokenized"
        raise InputError(f"{problem}; expected tokens in place of epochs", key=key)
    return max(1, round(epochs * data.train_tokens))


def _without_share(until: Until, draft: StageDraft, run_tokens: int | None, key: str = "until") -> Until:
    """With a share of the run's length as tokens; the smaller one where both are given."""
    changes: dict[str, object] = {}
    if until.share is not None:
        if draft.unit != TOKENS:
            problem = f"found in a stage of {draft.stage.objective.name}, which counts {draft.unit}"
            raise InputError(f"{problem}; expected {draft.unit}", key=f"{key}.share")
        if run_tokens is None:
            problem = f"found {until.share:g} in a run whose length is not given; expected length"
            raise InputError(f"{problem}: {{tokens: 10M}} in the file, or tokens in place of share", key=f"{key}.share")
        tokens = max(1, round(until.share * run_tokens))
        changes = {"share": None, "tokens": min(tokens, until.tokens or tokens)}
    for name in ("any", "all"):
        parts = getattr(until, name)
        if parts is not None:
            found = tuple(_without_share(one, draft, run_tokens, f"{key}.{name}[{at}]") for at, one in enumerate(parts))
            changes |= {name: found} if found != parts else {}
    return until.model_copy(update=changes) if changes else until
