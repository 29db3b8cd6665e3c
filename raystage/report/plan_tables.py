"""Tables for people: what `raystage plan` prints, and what stands at the end of a run.

Rich alone: nothing here may import torch or ray, since `raystage plan` must answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from raystage.growth.explain import explain, what_grows
from raystage.growth.operators import in_short
from raystage.growth.request import Growth
from raystage.plan.build import Plan, StagePlan
from raystage.plan.memory import MemoryEstimate
from raystage.plan.plan import flops_shared
from raystage.report import tables
from raystage.report.advice import Suggestion, warnings
from raystage.report.columns import WholeTable
from raystage.report.columns import name_column as _name
from raystage.report.columns import number_column as _number
from raystage.report.columns import table as _table
from raystage.report.tables import format_perplexity
from raystage.results.data_use import data_json, data_lines
from raystage.results.savings import format_flops, format_share
from raystage.storage.prune import Listing
from raystage.units import format_bytes, format_count, format_seconds

KEY_DIGITS = 12

STATE_STYLES = {
    "SCHEDULING": "dim", "RUNNING": "cyan", "RESTARTING": "yellow", "ERRORED": "red", "ABORTED": "red",
    "FINISHED": "green", "REUSED": "green", "WAITING": "dim", "INTERRUPTED": "yellow",
}  # fmt: skip


# --- the plan ---------------------------------------------------------------------------------


def plan_table(plan: Plan) -> RenderableType:
    """The stages, what the baselines cost, the saving that FLOPs alone predict, and what to beware of."""
    stages = _stages(plan, plan.name, _SIZES, _MEMORY, _MEMORY_PARTS, _MEANS)
    lines = [*data_lines(data_json(plan.staged)), *_baseline_lines(plan), *_variant_lines(plan)]
    return Group(stages, "", *map(Text, lines), Text(_prediction(plan)), *_warning_lines(plan))


@dataclass(frozen=True)
class _PlanColumn:
    """A column of the plan: its heading, a stage's cell and, where there is one, the total."""

    header: str
    cell: Callable[[Plan, StagePlan], str]
    total: Callable[[Plan], str] = lambda plan: ""
    is_number: bool = True


def _memory_part(header: str, part: Callable[[MemoryEstimate], int]) -> _PlanColumn:
    return _PlanColumn(header, lambda plan, stage: format_bytes(part(stage.memory)))


_STAGE = _PlanColumn("stage", lambda plan, stage: stage.name, lambda plan: "total", is_number=False)
_SIZES = (
    _PlanColumn("layers", lambda plan, stage: str(stage.shape.num_layers)),
    _PlanColumn("params", lambda plan, stage: format_count(stage.num_params)),
    _PlanColumn("tokens", lambda plan, stage: _most([stage]) + format_count(stage.tokens),
                lambda plan: _most(plan.staged.stages) + format_count(plan.staged.tokens)),
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


def _most(stages: Iterable[StagePlan]) -> str:
    """Marks a number as the most it can be."""
    return "≤ " if any(stage.until for stage in stages) else ""


def _growth_of(stage: StagePlan) -> str:
    """One line for each part that grows: the table is no wider for it."""
    rewarm = stage.growth.rewarm if stage.growth else None
    lines = (stage.growth_operator or "-").split(", ") + ([f"rewarm {rewarm.factor:g}x"] if rewarm else [])
    return "\n".join(lines)


def _stages(plan: Plan, title: str | None, *groups: Sequence[_PlanColumn]) -> WholeTable:
    columns = [_STAGE, *(column for group in groups for column in group)]
    headers = tuple(_number(one.header) if one.is_number else _name(one.header) for one in columns)
    rows = [[column.cell(plan, stage) for column in columns] for stage in plan.staged.stages]
    return WholeTable(title, headers, [*rows, [column.total(plan) for column in columns]], totals=1)


def left_line(plan: Plan, finished: Collection[str]) -> str:
    """'The store has 2 of its 5 stages: 1.2e12 of 3.4e12 FLOPs are left to train.'"""
    left, whole = format_flops(plan.flops_left(finished)), format_flops(plan.flops_left(()))
    count = len(plan.stages_by_key())
    return f"The store has {len(finished)} of its {count} stages: {left} of {whole} FLOPs are left to train."


def _baseline_lines(plan: Plan) -> list[str]:
    if not plan.baselines:
        return ["No baseline: the run will not measure what it saves."]
    layers = plan.staged.stages[-1].shape.num_layers
    budgets = ", ".join(
        f"{format_count(run.tokens)} tokens ({format_flops(run.flops)} FLOPs)" for run in plan.baselines
    )
    lines = [f"Baseline: {layers} layers from scratch for {budgets}."]
    apart, shared = sum(run.flops for run in plan.baselines), plan.baseline_flops_shared()
    if shared < apart:
        less = format_share(1 - shared / apart)
        lines.append(
            f"The budgets share a trunk: {format_flops(shared)} FLOPs to train, "
            f"{less} less than {format_flops(apart)} apart."
        )
    return lines


def _variant_lines(plan: Plan) -> list[str]:
    """What is trained besides the table's stages and the baselines, and what all of it comes to."""
    if not plan.variants and not plan.further_seeds:
        return []
    tuned = f"{len(plan.candidates)} values of {', '.join(path for path, _ in plan.values)}" if plan.variants else ""
    seeds = f"{1 + len(plan.further_seeds)} seeds" if plan.further_seeds else ""
    if tuned and seeds:
        how = f"{tuned} on seed {plan.seed}, then the best of either side on {len(plan.further_seeds)} more"
    else:
        how = tuned or seeds
    runs = plan.runs()
    flops = format_flops(flops_shared(runs))
    return [f"Staged run and baseline are trained with {how}: {len(runs)} runs, {flops} FLOPs in all."]


def _prediction(plan: Plan) -> str:
    has_baseline = bool(plan.baselines)
    against = "from scratch" if has_baseline else "for the last stage's model all the way"
    return (
        f"Predicted saving at equal tokens: {format_share(plan.predicted_saving)} of the FLOPs "
        f"({format_flops(plan.staged.flops)} against {format_flops(plan.scratch_flops)} {against}). "
        f"The saving at equal loss is what a run {'measures' if has_baseline else 'with a baseline measures'}."
    )


def _warning_lines(plan: Plan) -> list[Text]:
    lines = [f"Warning: {one.key}: {one.text} ({one.source})." for one in warnings(plan)]
    return [Text(line, style="yellow") for line in lines]


# --- suggestions ------------------------------------------------------------------------------


def suggestion_table(plan: Plan, suggestions: Sequence[Suggestion]) -> RenderableType:
    """The tokens of every stage now and as suggested, what that would cost, and the options to copy."""
    if not suggestions:
        ramps = any(stage.training.ramp for stage in plan.staged.stages)
        return Text(f"Nothing to suggest: {'a stage has a ramp' if ramps else 'no stage grows'}.")
    return Group(_suggested_tokens(plan, suggestions), *(part for one in suggestions for part in _explained(one)))


def _suggested_tokens(plan: Plan, suggestions: Sequence[Suggestion]) -> Table:
    stages = plan.staged.stages
    table = _table("suggested lengths", [_name("stage"), _number("layers"), _number("tokens\nnow"),
                                         *(_number(one.rule) for one in suggestions)])  # fmt: skip
    for index, stage in enumerate(stages):
        suggested = (format_count(one.tokens[index]) for one in suggestions)
        table.add_row(stage.name, str(stage.shape.num_layers), format_count(stage.tokens), *suggested)
    table.add_section()
    table.add_row("FLOPs", "", format_flops(plan.staged.flops), *(format_flops(one.flops) for one in suggestions))
    table.add_row("predicted saving", "", format_share(plan.predicted_saving),
                  *(format_share(one.predicted_saving) for one in suggestions))  # fmt: skip
    return table


def _explained(suggestion: Suggestion) -> list[RenderableType]:
    """Where a suggestion comes from, and options that can be pasted after `raystage plan SCHEDULE` as they are."""
    growth = f"The last growth is at {format_share(suggestion.last_growth_share)} of the tokens."
    lines = [f"{suggestion.rule}, after {suggestion.source}. {growth}", *(f"- {note}." for note in suggestion.notes)]
    options = " \\\n".join(f"  --set '{override}'" for override in suggestion.overrides)
    return ["", *map(Text, lines), Text(options, no_wrap=True, overflow="ignore")]


# --- the end of a run -------------------------------------------------------------------------


def final_table(report: Mapping[str, Any]) -> RenderableType:
    """The stages, the baselines, what can be held against the figure and, as the last line, the verdict.

    `report` is what `build_report` returns.
    """
    parts = [_report_table("stage", report["name"], report["stages"]), ""]
    if report["baseline"]["runs"]:
        parts += [_report_table("baseline", None, report["baseline"]["runs"]), ""]
    more = (
        tables.metric_table,
        tables.downstream_table,
        tables.tuning_table,
        tables.seed_table,
    )
    for table in more:
        if (written := table(report)).rows:
            parts += [_as_written(written), ""]
    if report.get("data"):  # of a version before there is none
        parts += [*map(Text, data_lines(report["data"])), ""]
    if report["savings"]["equal_loss_reached"]:
        parts += [Text(f"- {warning}", style="dim") for warning in report["warnings"]]
    return Group(*parts, *_environment(report), Text(report["savings"]["verdict"], style="bold"))


def _environment(report: Mapping[str, Any]) -> list[RenderableType]:
    """When, where and with what, in one paragraph."""
    rows = tables.environment_rows(report)
    facts = "; ".join(f"{name} {value}" for name, value in rows)
    return [Text(facts, style="dim"), ""] if rows else []


def _as_written(written: tables.Table) -> WholeTable:
    """A table of the report, whose first column names the rows."""
    first, *others = written.columns
    return WholeTable(written.title.lower(), (_name(first), *map(_number, others)), written.rows)


@dataclass(frozen=True)
class _ReportColumn:
    header: str
    cell: Callable[[Mapping[str, Any]], str | Text]
    is_number: bool = True


_WHAT = (
    _ReportColumn("layers", lambda row: str(row["num_layers"])),
    _ReportColumn("params", lambda row: format_count(row["num_params"])),
    _ReportColumn("tokens", lambda row: _known(row["tokens"], format_count)),
)
_OUTCOME = (
    _ReportColumn("FLOPs", lambda row: _known(row["flops"], format_flops)),
    _ReportColumn("eval\nloss", lambda row: _known(row["eval_loss"], format_loss)),
)
_QUALITY = (
    _ReportColumn("perplexity", lambda row: _known(row.get("perplexity"), format_perplexity)),
    _ReportColumn("accuracy", lambda row: _known(row.get("accuracy"), format_share)),
)
_GROWTH = (_ReportColumn("loss at growth", lambda row: _jump(row["growth"]), is_number=False),)
_END = (
    _ReportColumn("time", lambda row: _known(row["seconds"], format_seconds)),
    _ReportColumn("state", lambda row: Text(row["state"], style=STATE_STYLES.get(row["state"], "")), is_number=False),
)


def _report_table(what: str, title: str | None, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    name = (_ReportColumn(what, lambda row: row["name"], is_number=False),)
    growth = _GROWTH if any(row["growth"] for row in rows) else ()
    columns = (*name, *_WHAT, *_OUTCOME, *_QUALITY, *growth, *_END)
    headers = tuple(_number(one.header) if one.is_number else _name(one.header) for one in columns)
    return WholeTable(title, headers, [[column.cell(row) for column in columns] for row in rows])


def _jump(growth: Mapping[str, Any] | None) -> str:
    if growth is None:
        return "-"
    certificate = growth["certificate"]
    return format_jump(certificate["eval_loss_before"], certificate["eval_loss_after"])


def format_jump(before: float | None, after: float | None) -> str:
    """The held-out loss on both sides of a growth."""
    return f"{_known(before, format_loss)} -> {_known(after, format_loss)}"


def format_loss(loss: float) -> str:
    return f"{loss:.3f}"


def _known(value: Any, as_text: Callable[[Any], str]) -> str:
    """A cell; what is not known is a dash."""
    return "-" if value is None else as_text(value)


# --- a growth map -----------------------------------------------------------------------------


def growth_table(growth: Growth) -> Table:
    """What every parameter of the target is made from; layers whose parameters share a rule take one line."""
    request, grown = growth.request, what_grows(growth.source, growth.target)
    precision = growth.how()["exact_in"]
    kind = {None: "not exact", "any": "the same function"}.get(precision, f"the same function in {precision}")
    title = f"{in_short(request.operator)}: {grown} ({kind}; optimizer_state {request.optimizer_state})"
    table = _table(title, [Column(header, overflow="fold") for header in ("target", "<- source", "weights", "moments")])
    for line in explain(growth.source, growth.target, growth.rules, growth.families):
        table.add_row(*map(Text, (line.target, line.source, line.weights, line.moments)))
    return table


# --- a certificate ----------------------------------------------------------------------------


def certificate_table(found: Mapping[str, Any]) -> RenderableType:
    """What `raystage certify` found, a line for each figure; those that could not be measured are dashes."""
    kind = {True: ", which claims the same function", False: ", which is not exact", None: ""}[found["exact"]]
    kind += f" in {found['exact_in']}" if found["exact_in"] not in (None, "any") else ""
    how = f" by {in_short(found['operator'])}{kind}" if found["operator"] else ", it does not say how"
    table = _table(None, [_name("figure"), Column("found", overflow="fold")])
    for name, figure in _figures(found["certificate"]):
        table.add_row(Text(name), Text(figure))
    return Group(
        Text(f"{found['source']} -> {found['target']}"),
        Text(f"grown{how}; measured in {found['seconds']:.1f} s", style="dim"),
        "",
        table,
    )


def _figures(certificate: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "loss before -> after", format_jump(certificate["eval_loss_before"], certificate["eval_loss_after"])
    yield "logits differ by", _known(certificate["max_logit_difference"], _short)
    yield "... in the mean", _known(certificate["mean_logit_difference"], _short)
    ratios = [_known(ratio, lambda ratio: f"{ratio:.3f}") for ratio in certificate["activation_rms_ratio"]]
    yield "activation RMS, layer by layer", " ".join(ratios) or "-"
    yield "gradients, exactly predicted: error", _known(certificate["gradient_error"], _short)
    yield "... estimated: error", _known(certificate["gradient_error_estimated"], _short)
    for state, sides in certificate["moment_norms"].items():
        yield f"norm of {state}", f"{_short(sides['before'])} -> {_short(sides['after'])}"
    after = f" after {certificate['twin_steps']} steps" if certificate["twin_steps"] else ""
    yield f"copies differ{after} by", _known(certificate["twin_distance"], _short)


def _short(figure: float) -> str:
    return f"{figure:.2g}"


# --- a store ----------------------------------------------------------------------------------


def store_table(listing: Listing) -> RenderableType:
    """What lies in a store, a line for each stage and each run."""
    columns = (
        *map(_name, ("key", "name", "state")), *map(_number, ("tokens", "loss", "checkpoints", "size")), _name("runs"),
    )  # fmt: skip
    rows = [
        (
            stage.key[:KEY_DIGITS],
            stage.name or "-",
            stage.state,
            _known(stage.tokens, format_count),
            _known(stage.eval_loss, lambda loss: f"{loss:.4f}"),
            str(len(stage.checkpoints)),
            format_bytes(stage.bytes),
            ", ".join(listing.runs_of(stage.key)) or "-",
        )
        for stage in listing.stages
    ]
    stages = WholeTable("stages", columns, rows)
    runs = _table("runs", [_name("name"), _name("state"), _number("stages")])
    for run in listing.runs:
        runs.add_row(Text(run.name), run.state or "-", str(len(run.stage_keys)))
    return Group(stages, "", runs)
