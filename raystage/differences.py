"""What the staged run had on its way and the baseline has not: what is staged, and what differs besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from raystage.planned import Plan, StagePlan
from raystage.schedule import LrSchedule, RampOf
from raystage.units import format_count, shown

# Options of DeepSpeed that only say what it logs.
_LOGGED = {
    "comms_logger", "dump_state", "flops_profiler", "memory_breakdown", "steps_per_print", "wall_clock_breakdown",
}  # fmt: skip


def is_staged(plan: Plan) -> bool:
    """Whether anything is staged: the model grows, the text or the context changes, or a part stands still. What is
    tuned once for a whole run, such as batch and rate, may change from stage to stage, but that is no staging."""
    stages = plan.staged.stages
    models = {stage.shape for stage in stages}
    texts = {_text(stage) for stage in stages}
    ramps = [stage.training.ramp for stage in stages if stage.training.ramp]
    changes = any(stage.freezing for stage in stages) or any(ramp.context_length for ramp in ramps)
    return len(models) > 1 or len(texts) > 1 or changes


def differences(plan: Plan) -> list[str]:
    """What the loss depends on and the two sides differ in, as phrases with the values of both. What was tuned is the
    best of either side, and is left out."""
    tuned = {path for path, _ in plan.values}
    baselines = [_facts(run.stages[-1], tuned) for run in plan.baselines]
    staged = [(stage.name, _facts(stage, tuned)) for stage in plan.staged.stages]
    if not baselines:
        return []
    sides, found = [*baselines, *(facts for _, facts in staged)], []
    for path in dict.fromkeys(path for facts in sides for path in facts):
        if path.startswith("training.optimizer.") and not all(path in facts for facts in sides):
            continue  # of another optimizer, whose name says it
        theirs = list(dict.fromkeys(facts.get(path, "none") for facts in baselines))
        ours = [(name, facts.get(path, "none")) for name, facts in staged]
        if {value for _, value in ours} != set(theirs):
            found.append(f"{path} ({' and '.join(theirs)} in the baseline, {_by_stage(ours)})")
    return found


def other_text(plan: Plan) -> list[str]:
    """The stages that read other text than the baselines."""
    known = {_text(stage) for run in plan.baselines for stage in run.stages}
    return [stage.name for stage in plan.staged.stages if _text(stage) not in known]


def _text(stage: StagePlan) -> tuple:
    return stage.data.fingerprint, stage.data.tokenizer_fingerprint, stage.data.validation_fraction


def _by_stage(values: Sequence[tuple[str, str]]) -> str:
    """'1024 in small and medium, 4096 in full'."""
    parts = []
    for value, stages in groupby(values, lambda pair: pair[1]):
        parts.append(f"{value} in {' and '.join(name for name, _ in stages)}")
    return ", ".join(parts)


def _facts(stage: StagePlan, tuned: set[str]) -> Mapping[str, str]:
    """By path in a schedule all that the loss depends on, but for the model and the text."""
    training = stage.training
    ramp = training.ramp
    options = {name: value for name, value in training.deepspeed.items() if name not in _LOGGED}
    facts = {
        "training.global_batch_tokens": _ramped(training.global_batch_tokens, ramp and ramp.global_batch_tokens),
        "model.context_length": _ramped(stage.shape.context_length, ramp and ramp.context_length),
        **{f"training.optimizer.{name}": _value(value) for name, value in training.optimizer.used().items()},
        "training.lr_schedule": _rate(training.lr_schedule, stage.own_rate, tuned),
        "training.precision": training.precision,
        "training.gradient_clipping": _value(training.gradient_clipping),
        **({"training.deepspeed": shown(options)} if options else {}),
    }
    return {path: value for path, value in facts.items() if path not in tuned}


def _ramped(value: int, ramp: RampOf | None) -> str:
    return f"{ramp.start} rising to {value}" if ramp else str(value)


def _rate(schedule: LrSchedule, own: bool, tuned: set[str]) -> str:
    spans = ["warmup", "decay"] if schedule.kind == "wsd" else ["warmup"]
    parts = [
        f"{name} {_span(getattr(schedule, name))}" for name in spans if f"training.lr_schedule.{name}" not in tuned
    ]
    if schedule.min_lr_ratio and "training.lr_schedule.min_lr_ratio" not in tuned:
        parts.append(f"min_lr_ratio {schedule.min_lr_ratio:g}")
    return " ".join([f"{', '.join([schedule.kind, *parts])} over", "its own length" if own else "the whole run"])


def _span(span: float) -> str:
    return f"{span:g}" if span < 1 else format_count(span)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
