"""The tables that `raystage plan` prints. Nothing here may import torch or ray: `raystage plan` must answer at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raystage.growth.checks import changed_fields, changed_positions, exchanges_head
from raystage.models import rope
from raystage.models.shape import parameters
from raystage.plans.adapters import BESIDE, AdapterPlan
from raystage.plans.memory import MemoryEstimate
from raystage.plans.plan import Plan, flops_shared
from raystage.plans.rates import rates_of
from raystage.plans.stage import StagePlan
from raystage.reports.advice import warnings
from raystage.reports.columns import WholeTable
from raystage.reports.columns import name_column as _name
from raystage.reports.columns import number_column as _number
from raystage.reports.columns import table as _table
from raystage.reports.cost_tables import lost_work_line
from raystage.reports.formats import KEY_DIGITS, format_layers, format_length, length_name
from raystage.reports.model_tables import family_line, members_line
from raystage.reports.suggestions import Suggestion, why_nothing
from raystage.results.branches.family import DeliveredModel, delivered_family
from raystage.results.branches.members import members_of_ensembles
from raystage.results.data.data_use import data_lines, data_rows
from raystage.results.data.mixtures import mixture_lines, order_lines
from raystage.results.differences import IN_WORDS, baseline_reads
from raystage.units import format_bytes, format_count, format_flops, format_share

# --- the plan ---------------------------------------------------------------------------------


def plan_table(plan: Plan) -> RenderableType:
    """The stages, the cost of the baselines, the saving that FLOPs alone predict, and the warnings."""
    stages = _stages(plan, plan.name, _SIZES, _MEMORY, _MEMORY_PARTS, _MEANS)
    data = data_lines(data_rows(plan.staged))
    reads = [*data, *mixture_lines(plan.staged), *order_lines(plan.staged)]
    members = map(members_line, members_of_ensembles(plan))
    models = [*_teacher_lines(plan), *members, *_scorer_lines(plan), *_adapter_lines(plan), *_average_lines(plan)]
    models += _delivery_lines(plan)
    models += [*_idle_lines(plan), lost_work_line(plan)]
    lines = [_rate_line(plan), *reads, *models, *_baseline_lines(plan), *_variant_lines(plan)]
    return Group(stages, "", *map(Text, lines), Text(_prediction(plan)), *_warning_lines(plan))


@dataclass(frozen=True)
class _PlanColumn:
    """A column of the plan: its title, the cell of a stage and, if there is one, the total."""

    header: str
    cell: Callable[[Plan, StagePlan], str]
    total: Callable[[Plan], str] = lambda plan: ""
    is_number: bool = True


def _memory_part(header: str, part: Callable[[MemoryEstimate], int]) -> _PlanColumn:
    return _PlanColumn(header, lambda plan, stage: format_bytes(part(stage.memory)))


# Stands for the unit in the title of a column.
_LENGTH = "{length}"
_STAGE = _PlanColumn("stage", lambda plan, stage: stage.name, lambda plan: "total", is_number=False)
_SIZES = (
    _PlanColumn("layers", lambda plan, stage: str(stage.shape.num_layers)),
    _PlanColumn("params", lambda plan, stage: format_count(stage.num_params)),
    _PlanColumn(_LENGTH, lambda plan, stage: _most([stage]) + _length(plan, stage.duration, stage.unit),
                lambda plan: _total_length(plan)),
    _PlanColumn("steps", lambda plan, stage: str(stage.steps),
                lambda plan: str(sum(stage.steps for stage in plan.staged.stages))),
    _PlanColumn("FLOPs", lambda plan, stage: format_flops(stage.flops), lambda plan: format_flops(plan.staged.flops)),
    _PlanColumn("share", lambda plan, stage: f"{stage.flops / plan.staged.flops:.0%}"),
    _PlanColumn("evaluation\nadds", lambda plan, stage: f"{stage.evaluation_share:.0%}",
                lambda plan: f"{_evaluation_share(plan):.0%}"),
)  # fmt: skip
_MEMORY = (_memory_part("memory\nper worker", lambda memory: memory.total_bytes),)
_MEMORY_PARTS = (
    _memory_part("of which\nweights", lambda memory: memory.weights_bytes),
    _memory_part("gradients", lambda memory: memory.gradients_bytes),
    _memory_part("optimizer", lambda memory: memory.optimizer_bytes),
    _memory_part("activations", lambda memory: memory.activations_bytes),
)
_MEANS = (
    _PlanColumn("workers", lambda plan, stage: f"{stage.training.workers!s} x ZeRO {stage.training.zero_stage}",
                is_number=False),
    _PlanColumn("growth", lambda plan, stage: _growth_of(stage), is_number=False),
    _PlanColumn("key", lambda plan, stage: stage.key[:KEY_DIGITS], is_number=False),
)  # fmt: skip


def _evaluation_share(plan: Plan) -> float:
    stages = plan.staged.stages
    return sum(stage.evaluation_flops for stage in stages) / sum(stage.training_flops for stage in stages)


def _length_name(plan: Plan) -> str:
    return length_name(stage.unit for stage in plan.staged.stages)


def _length(plan: Plan, duration: int, unit: str) -> str:
    return format_length(duration, unit, _length_name(plan))


def _total_length(plan: Plan) -> str:
    """One line for each unit: tokens and samples cannot be added up."""
    lengths = (_length(plan, duration, unit) for unit, duration in plan.staged.durations.items())
    return "\n".join(_most(plan.staged.stages) + one for one in lengths)


def _most(stages: Iterable[StagePlan]) -> str:
    """Marks a number as an upper limit."""
    return "≤ " if any(stage.until for stage in stages) else ""


def _growth_of(stage: StagePlan) -> str:
    """One line for each part that grows or changes, so that the table gets no wider.

    Every stage after the first has an operator, also where nothing grows: then it is not shown.
    """
    before = stage.parent_shape
    if before is None or stage.growth is None:
        return "\n".join(_frozen_of(stage)) or "-"
    grown = stage.growth_operator.split(", ") if changed_fields(before, stage.shape) else []
    head = ["new head"] if exchanges_head(before, stage.shape) else []
    rewarm = [f"rewarm {stage.growth.rewarm.factor:g}x"] if stage.growth.rewarm else []
    return "\n".join([*grown, *head, *rewarm, *_positions_of(stage), *_frozen_of(stage)]) or "-"


def _frozen_of(stage: StagePlan) -> list[str]:
    """What share of the parameters is frozen at the stage's start, and how it begins to train."""
    if stage.adapter:
        return [f"LoRA rank {stage.adapter.rank}"]
    freezing = stage.freezing
    if freezing is None:
        return []
    frozen = freezing.names(stage.shape)
    share = sum(one.numel for one in parameters(stage.shape) if one.name in frozen) / stage.num_params
    return [f"{share:.0%} frozen", *([f"thaws from {freezing.thaw.start}"] if freezing.thaw else [])]


def _positions_of(stage: StagePlan) -> list[str]:
    """The rotary positions that the stage changes: a model with others is another function of the same weights."""
    changed = changed_positions(stage.parent_shape, stage.shape) if stage.parent_shape else []
    words = {
        "rope_theta": f"rope_theta {format_count(stage.shape.rope_theta)}",
        "rope_scaling": rope.in_short(stage.shape.rope_scaling),
        "local_rope_theta": f"local_rope_theta {format_count(stage.shape.local_rope_theta)}",
    }
    return [words[name] for name in changed]


def _rate_line(plan: Plan) -> str:
    """'Learning rate: small 0 to 0.002, full 0.002 to 0.'"""
    return f"Learning rate: {', '.join(f'{one.name} {_rates(one)}' for one in plan.staged.stages)}."


def _rates(stage: StagePlan) -> str:
    start, peak, end = rates_of(stage)
    if start == peak == end:
        return f"{start:.3g}"
    return f"{start:.3g} to {end:.3g}" + (f" (at most {peak:.3g})" if peak > max(start, end) else "")


def _stages(plan: Plan, title: str | None, *groups: Sequence[_PlanColumn]) -> WholeTable:
    columns = [_STAGE, *(column for group in groups for column in group)]
    titles = [one.header.format(length=_length_name(plan)) for one in columns]
    made = zip(titles, columns, strict=True)
    headers = tuple(_number(title) if one.is_number else _name(title) for title, one in made)
    rows = [[column.cell(plan, stage) for column in columns] for stage in plan.staged.stages]
    return WholeTable(title, headers, [*rows, [column.total(plan) for column in columns]], totals=1)


def left_line(plan: Plan, finished: Collection[str]) -> str:
    """'The store has 2 of its 5 stages: 1.2e12 of 3.4e12 FLOPs are left to train.'"""
    left, whole = format_flops(plan.flops_left(finished)), format_flops(plan.flops_left(()))
    count = len(plan.stages_by_key())
    return f"The store has {len(finished)} of its {count} stages: {left} of {whole} FLOPs are left to train."


def _teacher_lines(plan: Plan) -> list[str]:
    """Whom stages learn from, and what that costs."""
    return [_teacher_line(stage) for stage in plan.staged.stages if stage.teacher]


def _teacher_line(stage: StagePlan) -> str:
    whose, copies = ("teachers'", "their copies") if stage.teacher.others else ("teacher's", "its copy")
    return (
        f"{stage.name} learns from {stage.teacher.names}: the {whose} forward passes are "
        f"{format_share(stage.teacher_flops / stage.flops)} of its FLOPs, and {copies} on every worker "
        f"take{'' if stage.teacher.others else 's'} {format_bytes(stage.memory.teacher_bytes)} of the memory."
    )


def _scorer_lines(plan: Plan) -> list[str]:
    """Which stages score documents before they train, and what that costs."""
    return [_scorer_line(stage) for stage in plan.staged.stages if stage.scored]


def _scorer_line(stage: StagePlan) -> str:
    is_estimate = any(part.data.train_tokens is None for part in stage.scored)
    return (
        f"{stage.name} scores {'about ' if is_estimate else ''}{format_count(stage.scoring_tokens)} tokens of documents"
        f" under {stage.scorer.name} before it trains: {format_share(stage.scoring_flops / stage.flops)} of its FLOPs, "
        f"with all weights on every worker ({format_bytes(stage.scorer_bytes)})."
    )


def _adapter_lines(plan: Plan) -> list[str]:
    """What stages with an adapter train, and what becomes of it."""
    return [_adapter_line(stage, stage.adapter) for stage in plan.staged.stages if stage.adapter]


def _adapter_line(stage: StagePlan, adapter: AdapterPlan) -> str:
    share, full = stage.num_trained / stage.num_params, len(adapter.in_full)
    also = f", with {full} parameter{'s' if full > 1 else ''} in full" if full else ""
    kept = ", and it is kept beside them" if adapter.keep == BESIDE else ""
    return (
        f"{stage.name} trains LoRA of rank {adapter.rank} on {len(adapter.weights)} matrices{also}: "
        f"{format_count(stage.num_trained)} parameters, {format_share(share)} of the model's. Their optimizer state "
        f"takes {format_bytes(stage.memory.optimizer_bytes)}. At the end it is merged into the weights{kept}."
    )


def _average_lines(plan: Plan) -> list[str]:
    """Which stages end with an average of their last checkpoints."""
    return [
        f"{stage.name} ends with an average of its last {averaging.last} checkpoints, one at every "
        f"{format_count(averaging.every)} {stage.unit}; the store keeps them."
        for stage in plan.staged.stages
        if (averaging := stage.averaging)
    ]


def _delivery_lines(plan: Plan) -> list[str]:
    """Which stages deliver a model, and what the family costs."""
    family = delivered_family(plan)
    if family is None:
        return []
    return [*(_delivery_line(one) for one in family.models), family_line(family)]


def _idle_lines(plan: Plan) -> list[str]:
    """Which stages of the staged run use fewer GPUs than its widest one."""
    used = {stage.name: stage.training.workers.most * stage.training.gpus_per_worker for stage in plan.staged.stages}
    most = max(used.values())
    idle = ", ".join(f"{most - gpus} in {name}" for name, gpus in used.items() if gpus < most)
    return [f"Of the {most} GPUs that its widest stage uses, the run leaves idle: {idle}."] if idle else []


def _delivery_line(one: DeliveredModel) -> str:
    model = f"{one.stage} delivers {format_layers(one.num_layers)}, {format_count(one.num_params)} parameters"
    if not one.decay:
        return f"{model}, as they are at its end."
    return f"{model}, after a decay over {format_count(one.decay)} {one.unit} beside the run."


def _baseline_lines(plan: Plan) -> list[str]:
    if not plan.baselines:
        return ["No baseline: the run will not measure what it saves."]
    budgets = ", ".join(
        f"{format_count(run.duration)} {run.unit} ({format_flops(run.flops)} FLOPs)" for run in plan.baselines
    )
    reads = IN_WORDS.get(baseline_reads(plan))
    on = f", on {reads}" if reads else ""
    lines = [f"Baseline: {format_layers(plan.staged.stages[-1].shape.num_layers)} from scratch for {budgets}{on}."]
    apart, shared = sum(run.flops for run in plan.baselines), plan.baseline_flops_shared()
    if shared < apart:
        less = format_share(1 - shared / apart)
        lines.append(
            f"The budgets share a trunk: {format_flops(shared)} FLOPs to train, "
            f"{less} less than {format_flops(apart)} apart."
        )
    return lines


def _variant_lines(plan: Plan) -> list[str]:
    """What is trained besides the stages of the table and the baselines, and its total cost."""
    if not plan.variants and not plan.further_seeds:
        return []
    tuned = f"{len(plan.candidates)} values of {', '.join(path for path, _ in plan.values)}" if plan.variants else ""
    seeds = f"{1 + len(plan.further_seeds)} seeds" if plan.further_seeds else ""
    if tuned and seeds:
        how = f"{tuned} on seed {plan.seed}, then the best of either side on {len(plan.further_seeds)} more"
    else:
        how = tuned or seeds
    runs = plan.compared_runs()
    flops = format_flops(flops_shared(runs))
    return [f"Staged run and baseline are trained with {how}: {len(runs)} runs, {flops} FLOPs in all."]


def _prediction(plan: Plan) -> str:
    if plan.predicted_saving is None:
        return (
            "No predicted saving: the stages count tokens and samples, so there is no equal length to compare at. The "
            "saving at equal loss is what a run with a baseline measures."
        )
    has_baseline = bool(plan.baselines)
    against = "from scratch" if has_baseline else "for the last stage's model all the way"
    return (
        f"Predicted saving at equal {plan.staged.unit}: {format_share(plan.predicted_saving)} of the FLOPs "
        f"({format_flops(plan.staged_flops)} against {format_flops(plan.scratch_flops)} {against}). "
        f"The saving at equal loss is what a run {'measures' if has_baseline else 'with a baseline measures'}."
    )


def _warning_lines(plan: Plan) -> list[Text]:
    lines = [f"Warning: {one.key}: {one.text} ({one.source})." for one in warnings(plan)]
    return [Text(line, style="yellow") for line in lines]


# --- suggestions ------------------------------------------------------------------------------


def suggestion_table(plan: Plan, suggestions: Sequence[Suggestion]) -> RenderableType:
    """The tokens of every stage now and as suggested, the cost of each suggestion, and the options to copy."""
    if not suggestions:
        return Text(f"Nothing to suggest: {why_nothing(plan)}.")
    return Group(_suggested_tokens(plan, suggestions), *(part for one in suggestions for part in _explained(one)))


def _suggested_tokens(plan: Plan, suggestions: Sequence[Suggestion]) -> Table:
    stages = plan.staged.stages
    table = _table("suggested lengths", [_name("stage"), _number("layers"), _number("tokens\nnow"),
                                         *(_number(one.rule) for one in suggestions)])  # fmt: skip
    for index, stage in enumerate(stages):
        suggested = (format_count(one.tokens[index]) for one in suggestions)
        table.add_row(stage.name, str(stage.shape.num_layers), format_count(stage.duration), *suggested)
    table.add_section()
    table.add_row("FLOPs", "", format_flops(plan.staged.flops), *(format_flops(one.flops) for one in suggestions))
    table.add_row("predicted saving", "", format_share(plan.predicted_saving),
                  *(format_share(one.predicted_saving) for one in suggestions))  # fmt: skip
    return table


def _explained(suggestion: Suggestion) -> list[RenderableType]:
    """The source of a suggestion, and its options, which can be pasted after `raystage plan SCHEDULE`."""
    growth = f"The last growth is at {format_share(suggestion.last_growth_share)} of the tokens."
    lines = [f"{suggestion.rule}, after {suggestion.source}. {growth}", *(f"- {note}." for note in suggestion.notes)]
    options = " \\\n".join(f"  --set '{override}'" for override in suggestion.overrides)
    return ["", *map(Text, lines), Text(options, no_wrap=True, overflow="ignore")]
