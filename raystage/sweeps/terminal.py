"""Tables of a sweep for a terminal: its plan (what the trials share) and its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree as Branches

from raystage.reports.columns import STATE_STYLES, FirstThatFits, WholeTable, name_column, number_column, table
from raystage.results.sweep_report import SweepReport, TrialRow
from raystage.sweeps.reports.summary import loss_title, objective_titles, ranked, summary, trial_figures, trial_name
from raystage.sweeps.space import describe, format_value
from raystage.sweeps.tree import Node, Tree
from raystage.sweeps.trials import SweepPlan, Trial
from raystage.units import format_count, format_flops, format_share

MOST_TREE_LINES = 40
MOST_TRIALS = 20
MOST_SENTENCES = 5


def sweep_table(plan: SweepPlan) -> RenderableType:
    """What the sweep costs with and without sharing, its tree, its first trials, and notes about them."""
    parts: list[RenderableType] = [
        Text(plan.sweep.name, style="bold"),
        *map(Text, _summary(plan)),
        "",
        _branches(plan.tree),
        "",
        _trials(plan),
    ]
    notes = list(_notes(plan))
    return Group(*parts, *(["", *notes] if notes else []))


def _summary(plan: SweepPlan) -> Iterable[str]:
    tree, search = plan.tree, plan.sweep.search
    apart = sum(len(trial.plan.staged.stages) for trial in plan.trials)
    yield f"{tree.trials} trials ({search.algorithm}), {len(tree.nodes)} different stages among {apart}."
    yield (
        f"FLOPs: {format_flops(tree.flops_apart)} apart, {format_flops(tree.flops_shared)} with every stage trained "
        f"once: a sharing factor of {tree.sharing_factor:.2f}, {format_share(1 - 1 / tree.sharing_factor)} saved."
    )
    if tree.flops_left < tree.flops_shared:
        yield f"The store has {format_flops(tree.flops_shared - tree.flops_left)} of them already."
    if plan.baselines:
        repeats = any(trial.plan.variants or trial.plan.further_seeds for trial in plan.trials)
        what = "baselines, tuned values and further seeds" if repeats else "baselines"
        more, left = plan.baselines.flops_shared, plan.baselines.flops_left
        finished = f"; the store has {format_flops(more - left)} of them already" if left < more else ""
        yield f"Their {what} come to {format_flops(more)} more, each trained once{finished}."
    yield f"The longest row of stages that wait for each other: {format_flops(tree.longest_flops)}."


# --- the tree ---------------------------------------------------------------------------------


def _branches(tree: Tree) -> Branches:
    """The tree, with as many stages at every fork as fit in MOST_TREE_LINES lines."""
    width = next((w for w in range(12, 1, -1) if _count(tree, tree.roots, w) <= MOST_TREE_LINES), 1)
    drawn = Branches(Text("nothing"), hide_root=True)
    _draw(drawn, tree, tree.roots, width)
    return drawn


def _count(tree: Tree, keys: Sequence[str], width: int) -> int:
    """The number of lines for the stages `keys` and what follows them."""
    below = sum(_count(tree, tree.nodes[key].children, width) for key in keys[:width])
    return len(keys[:width]) + below + (len(keys) > width)


def _draw(branch: Branches, tree: Tree, keys: Sequence[str], width: int) -> None:
    for key in keys[:width]:
        node = tree.nodes[key]
        _draw(branch.add(Text(_line(tree, node))), tree, node.children, width)
    if len(keys) > width:
        branch.add(Text(f"... {len(keys) - width} more", style="dim"))


def _line(tree: Tree, node: Node) -> str:
    """'small until.tokens=600K: 201K tokens after 401K, 2.42e11 FLOPs, trials 4 to 7', if 401K are shared."""
    label = f" {node.label}" if node.label else ""
    length = f"{format_count(node.stage.duration)} {node.stage.unit}"
    if node.prefix_key is not None:
        before = tree.nodes[node.prefix_key].stage.duration
        length = f"{format_count(node.stage.duration - before)} {node.stage.unit} after {format_count(before)}"
    cost = "in the store" if node.is_finished else f"{format_flops(node.own_flops)} FLOPs"
    return f"{node.stage.name}{label}: {length}, {cost}, {_numbers(node.trials)}"


def _numbers(trials: Sequence[int]) -> str:
    """'trial 3', 'trials 3 to 7' for consecutive numbers, 'trials 1, 5, 9', '400 trials'."""
    if len(trials) == 1:
        return f"trial {trials[0]}"
    if trials[-1] - trials[0] == len(trials) - 1 > 1:
        return f"trials {trials[0]} to {trials[-1]}"
    return f"trials {', '.join(map(str, trials))}" if len(trials) <= 6 else f"{len(trials)} trials"


# --- the trials -------------------------------------------------------------------------------


def _trials(plan: SweepPlan) -> RenderableType:
    """The first trials, with a column for each path if the width allows it, else one for all paths."""
    paths = [dimension.path for dimension in plan.sweep.points.dimensions]
    shown = plan.trials[:MOST_TRIALS]
    apart = _rows(
        [number_column(path.replace(".", "\n.")) for path in paths],
        [[format_value(trial.config.get(path, "-")) for path in paths] for trial in shown],
        shown,
    )
    together = WholeTable(
        "trials",
        (number_column("trial"), number_column("stages"), number_column("FLOPs"), name_column("config")),
        [(*_cells(one), describe(one.config)) for one in shown],
    )
    rows, left_out = FirstThatFits((apart, together)), len(plan.trials) - len(shown)
    return Group(rows, Text(f"... {left_out:,} more", style="dim")) if left_out else rows


def _rows(columns: Sequence[Column], configs: Sequence[Sequence[str]], trials: Sequence[Trial]) -> Table:
    rows = table("trials", [number_column("trial"), *columns, number_column("stages"), number_column("FLOPs")])
    for trial, config in zip(trials, configs, strict=True):
        number, *figures = _cells(trial)
        rows.add_row(number, *map(Text, config), *figures)
    return rows


def _cells(trial: Trial) -> tuple[str, str, str]:
    staged = trial.plan.staged
    return str(trial.number), str(len(staged.stages)), format_flops(staged.flops)


def _notes(plan: SweepPlan) -> Iterable[Text]:
    if not plan.is_foreseen:
        yield Text("Optuna chooses as results come in; these are random points of the same space, for an estimate.")
    if plan.repeats:
        yield Text(f"Repeats: {plan.repeats} of the trials are the same, stage by stage, as another one.")
    for sentence in plan.tree.apart[:MOST_SENTENCES]:
        yield Text(f"Not shared: {sentence}.", style="yellow")
    if len(plan.tree.apart) > MOST_SENTENCES:
        yield Text(f"... {len(plan.tree.apart) - MOST_SENTENCES} more such", style="dim")


# --- the result -------------------------------------------------------------------------------


def sweep_result_table(report: SweepReport) -> RenderableType:
    """The trials, the best first, and what the search cost."""
    rows = ranked(report)
    paths = list(dict.fromkeys(path for row in rows for path in row.config))
    apart = table(report.name, _result_columns(report, [number_column(path.replace(".", "\n.")) for path in paths]))
    for row in rows:
        apart.add_row(*_result_cells(report, row, [format_value(row.config.get(path, "-")) for path in paths]))
    together = WholeTable(
        report.name,
        (*_result_columns(report, []), name_column("config")),
        [[*_result_cells(report, row, []), describe(row.config)] for row in rows],
    )
    return Group(FirstThatFits((apart, together)), "", *(Text(line) for line in summary(report)))


def _result_columns(report: SweepReport, config: Sequence[Column]) -> list[Column]:
    figures = map(number_column, (*objective_titles(report), loss_title(report), "FLOPs"))
    return [number_column("rank"), number_column("trial"), *config, *figures, Column("state", no_wrap=True)]


def _result_cells(report: SweepReport, row: TrialRow, config: Sequence[str]) -> list[Text]:
    texts = map(Text, (*trial_name(report, row), *config, *trial_figures(report, row)))
    return [*texts, Text(row.state, style=STATE_STYLES.get(row.state, ""))]
