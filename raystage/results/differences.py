"""What is staged in a plan, and what else differs between the staged run and the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from raystage.config.deepspeed import ONLY_LOGGED
from raystage.config.training import LrSchedule, RampOf
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.units import format_count, shown

_RATE = "training.lr_schedule"
# What baselines read, as `baseline.data` has it, and in words.
LAST, STAGED = "last", "staged"
IN_WORDS = {
    LAST: "the last stage's text alone, shuffled",
    STAGED: "the texts of all stages, each over the same share of the run",
}


def is_staged(plan: Plan) -> bool:
    """Whether anything is staged: the model grows, the text, its order, the context or the objective changes, or
    parameters are frozen or stand still beside an adapter.

    A batch or a rate that changes from stage to stage is no staging, because it could be tuned once for a whole run.
    Nor is a text, or an order of it, that changes for the baselines as well.
    """
    stages = plan.staged.stages
    models = {stage.shape for stage in stages}
    ramps = [stage.training.ramp for stage in stages if stage.training.ramp]
    changes = any(stage.freezing or stage.adapter for stage in stages) or any(ramp.context_length for ramp in ramps)
    changes = changes or (_changes_text(plan.staged) and baseline_reads(plan) != STAGED)
    changes = changes or any((one.objective, one.teacher) != (stages[0].objective, stages[0].teacher) for one in stages)
    return len(models) > 1 or changes


def nothing_staged(plan: Plan) -> str:
    """Why nothing is staged in a plan, of which `is_staged` says so."""
    if baseline_reads(plan) == STAGED:
        return "train one model in the same context, on texts that the baselines read as well"
    return "train one model on the same text in the same context"


def differences(plan: Plan) -> list[str]:
    """What the loss depends on and differs between the two sides, as phrases with the values of both.

    Tuned values are left out, because each side has its best ones.
    """
    tuned = {path for path, _ in plan.values}
    return _compared(plan, lambda stage: _facts(stage, tuned))


def speed_differences(plan: Plan) -> list[str]:
    """The same for what only the time depends on. The records say more about workers and machines."""
    return _compared(plan, _speed_facts)


def _compared(plan: Plan, facts_of: Callable[[StagePlan], Mapping[str, str]]) -> list[str]:
    baselines = [facts_of(run.stages[-1]) for run in plan.baselines]
    staged = [(stage.name, facts_of(stage)) for stage in plan.staged.stages]
    if not baselines:
        return []
    sides, found = [*baselines, *(facts for _, facts in staged)], []
    for path in dict.fromkeys(path for facts in sides for path in facts):
        if path.startswith("training.optimizer.") and not all(path in facts for facts in sides):
            continue  # the optimizers differ, and their names say so
        theirs = list(dict.fromkeys(facts.get(path, "none") for facts in baselines))
        ours = [(name, facts.get(path, "none")) for name, facts in staged]
        if {value for _, value in ours} != set(theirs):
            found.append(f"{path} ({' and '.join(theirs)} in the baseline, {_by_stage(ours)})")
    return found


def baseline_reads(plan: Plan) -> str | None:
    """What the baselines read where the stages read different texts, or have a curriculum: the last stage's, or all.
    None elsewhere."""
    if not plan.baselines or not _changes_text(plan.staged):
        return None
    return STAGED if any(_changes_text(run) for run in plan.baselines) else LAST


def _changes_text(run: RunPlan) -> bool:
    """Whether the text changes from stage to stage, or a curriculum within one."""
    return len({_text(stage) for stage in run.stages}) > 1 or any(stage.curriculum for stage in run.stages)


def other_text(plan: Plan) -> list[str]:
    """The stages that read other text than the baselines."""
    known = {_text(stage) for run in plan.baselines for stage in run.stages}
    return [stage.name for stage in plan.staged.stages if _text(stage) not in known]


def _text(stage: StagePlan) -> tuple:
    """What is read, with the exact weights of a mixture."""
    texts = (
        (part.data.fingerprint, part.data.tokenizer_fingerprint, part.data.validation_fraction, part.weight)
        for part in stage.data.parts
        if part.weight
    )
    return tuple(texts)


def _by_stage(values: Sequence[tuple[str, str]]) -> str:
    """'1024 in small and medium, 4096 in full'."""
    parts = []
    for value, stages in groupby(values, lambda pair: pair[1]):
        parts.append(f"{value} in {' and '.join(name for name, _ in stages)}")
    return ", ".join(parts)


def _facts(stage: StagePlan, tuned: set[str]) -> Mapping[str, str]:
    """By path in a schedule everything that the loss depends on, except the model and the text."""
    training = stage.training
    ramp = training.ramp
    options = {name: value for name, value in training.deepspeed.items() if name not in ONLY_LOGGED}
    facts = {
        "objective": stage.objective.name,
        "data.window.mask": "document" if stage.within_documents else "none",
        f"training.global_batch_{stage.unit}": _ramped(training.global_batch, ramp and ramp.batch),
        "model.context_length": _ramped(stage.shape.context_length, ramp and ramp.context_length),
        **{f"training.optimizer.{name}": _value(value) for name, value in training.optimizer.used().items()},
        _RATE: _rate(training.lr_schedule, stage.own_rate, tuned),
        "training.precision": training.precision,
        "training.gradient_clipping": _value(training.gradient_clipping),
        **({"training.deepspeed": shown(options)} if options else {}),
    }
    if ramp and ramp.scale_lr != "none":
        facts["training.ramp.scale_lr"] = ramp.scale_lr
    if ramp and ramp.batch and f"training.global_batch_{stage.unit}" in tuned:
        # The final batch is tuned; the ramp that leads to it is not.
        facts[f"training.ramp.global_batch_{stage.unit}"] = f"from {ramp.batch.start}"
    return {path: value for path, value in facts.items() if path not in tuned}


def _speed_facts(stage: StagePlan) -> Mapping[str, str]:
    training = stage.training
    sequences = -(-training.global_batch // stage.sample_length(stage.shape.context_length) // training.workers.most)
    is_whole = training.micro_batch_size >= sequences
    return {
        "training.cpus_per_worker": str(training.cpus_per_worker),
        "training.gpus_per_worker": str(training.gpus_per_worker),
        "training.zero_stage": str(training.zero_stage),
        "training.offload_optimizer": training.offload_optimizer,
        "training.micro_batch_size": "the whole batch" if is_whole else str(training.micro_batch_size),
        "training.activation_checkpointing": str(training.activation_checkpointing).lower(),
        "training.compile": str(training.compile).lower(),
        "training.cross_entropy": training.cross_entropy,
    }


def _ramped(value: int, ramp: RampOf | None) -> str:
    return f"{ramp.start} rising to {value}" if ramp else str(value)


def _rate(schedule: LrSchedule, own: bool, tuned: set[str]) -> str:
    spans = ["warmup", "decay"] if schedule.kind == "wsd" else ["warmup"]
    parts = [f"{name} {_span(getattr(schedule, name))}" for name in spans if f"{_RATE}.{name}" not in tuned]
    if schedule.kind == "wsd" and schedule.decay_shape != "linear" and f"{_RATE}.decay_shape" not in tuned:
        parts.append(f"decay_shape {schedule.decay_shape}")
    if schedule.kind == "piecewise":
        parts += [f"{point.shape} to {point.ratio:g} at {_span(point.at)}" for point in schedule.points]
    elif schedule.min_lr_ratio and f"{_RATE}.min_lr_ratio" not in tuned:
        parts.append(f"min_lr_ratio {schedule.min_lr_ratio:g}")
    if schedule.start:
        parts.append("from the current rate")
    return " ".join([f"{', '.join([schedule.kind, *parts])} over", "its own length" if own else "the whole run"])


def _span(span: float) -> str:
    return f"{span:g}" if span <= 1 else format_count(span)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
