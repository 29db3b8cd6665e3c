"""The result of a sweep in words: the trials by rank, the verdict, what to keep in mind, a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from raystage.config import yaml_file
from raystage.reports.formats import Table
from raystage.reports.markdown import sentence, table_lines
from raystage.results.sweep_report import ObjectiveRow, SweepReport, TrialRow
from raystage.safe_text import in_markdown
from raystage.sweeps.config import METRICS
from raystage.sweeps.space import describe
from raystage.units import format_flops, format_seconds, format_share


@dataclass(frozen=True)
class Metric:
    """A metric in words. format: makes text of one value."""

    words: str
    format: Callable[[float], str]


_WORDS = {
    "eval_loss": Metric("held-out loss", "{:.4f}".format),
    "compute_saved": Metric("compute saved", format_share),
    "flops_to_loss": Metric("FLOPs to loss {target:g}", format_flops),
    "seconds_to_loss": Metric("time to loss {target:g}", format_seconds),
    "eval_loss_at_flops": Metric("held-out loss at {at} FLOPs", "{:.4f}".format),
}


def metric_of(objective: ObjectiveRow) -> Metric:
    """The metric of an objective."""
    found = _WORDS[objective.metric]
    at = None if objective.at is None else format_flops(objective.at)
    on = "" if objective.source is None else f" on {objective.source}"
    return replace(found, words=found.words.format(target=objective.target, at=at) + on)


def better(objective: ObjectiveRow) -> str:
    return "lower is better" if METRICS[objective.metric] == "min" else "higher is better"


def ranked(report: SweepReport) -> list[TrialRow]:
    """All trials, the best first, those without a rank last."""
    return sorted(report.trials, key=lambda row: (row.rank is None, row.rank or row.number))


def finished(report: SweepReport) -> list[TrialRow]:
    """The trials that have a rank, the best first."""
    return [row for row in ranked(report) if row.rank is not None]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last keys of each path, as many as make it unique: 'operator' for 'stages[1].grow.operator'."""
    steps = {path: yaml_file.parse_path(path) for path in paths}

    def tail(path: str, length: int) -> str:
        return yaml_file.dotted(steps[path][-length:])

    found = {}
    for path in steps:
        lengths = (length for length in range(1, len(steps[path]) + 1) if isinstance(steps[path][-length], str))
        found[path] = next(
            (tail(path, n) for n in lengths if [tail(other, n) for other in steps].count(tail(path, n)) == 1), path
        )
    return found


# --- trials -----------------------------------------------------------------------------------


def figure(objective: ObjectiveRow, value: float | None) -> str:
    """The value of an objective as text; "-" where it was not measured."""
    return "-" if value is None else metric_of(objective).format(value)


def objective_titles(report: SweepReport) -> list[str]:
    """The column titles of the objectives; the held-out loss has a column of its own."""
    return [metric_of(one).words for one in _other_objectives(report)]


def trial_name(report: SweepReport, row: TrialRow) -> tuple[str, str]:
    """Rank and number of a trial. A star marks a trial that no other one beats in all of several objectives."""
    star = "*" if len(report.objective) > 1 and row.is_pareto else ""
    return "-" if row.rank is None else f"{row.rank}{star}", str(row.number)


def trial_figures(report: SweepReport, row: TrialRow) -> list[str]:
    """The objectives of a trial, its held-out loss and its FLOPs. A saving over several seeds has its interval."""
    found = [figure(one, row.objectives.get(one.name)) + _interval(one, row) for one in _other_objectives(report)]
    loss = "-" if row.eval_loss is None else f"{row.eval_loss:.4f}"
    return [*found, loss, "-" if row.flops is None else format_flops(row.flops)]


def _interval(objective: ObjectiveRow, row: TrialRow) -> str:
    if objective.metric != "compute_saved" or row.interval is None or row.interval.low is None:
        return ""
    return f" ({format_share(row.interval.low)} to {format_share(row.interval.high)})"


def best_in_words(report: SweepReport) -> str:
    """'trial 3 (lr 0.004): held-out loss 1.8123', of the best trial."""
    best = report.best
    figures = [_figure_in_words(one, best.objectives.get(one.name)) for one in report.objective]
    return f"trial {best.number} ({describe(best.config)}): {', '.join(figures)}"


def _other_objectives(report: SweepReport) -> list[ObjectiveRow]:
    """Those without the loss that every trial shows."""
    first = report.objective[0]
    return [one for one in report.objective if one.metric != "eval_loss" or one.source != first.source]


def loss_title(report: SweepReport) -> str:
    """The title of the column with the held-out loss that trials are compared by."""
    return metric_of(ObjectiveRow(metric="eval_loss", source=report.objective[0].source)).words


# --- the verdict ------------------------------------------------------------------------------

# With fewer trials, the shares of what mattered say little.
ENOUGH_TRIALS = 20
CHOSEN_AND_JUDGED = (
    "The best trial was chosen on the text that it is judged by, so the best of several looks better there than it is."
)
HELD_AGAINST_ITS_OWN = (
    "Each trial is compared with baselines of its own, which train with its values, except for those of the stages: "
    "the saving may be largest where the values are worst for the baseline."
)


def verdict(report: SweepReport) -> str:
    """The result in one or two sentences: which trial is best, what it saves, what the search cost."""
    best, search = report.best, report.search
    cost = f"the search trained {format_flops(search.flops_spent)} FLOPs"
    if search.flops_spent and search.flops_spent < search.flops_claimed:
        cost += f", {search.sharing_factor:.2f} times fewer than its trials cost apart"
    if best is None:
        return f"No trial finished; {cost}."
    figures = [_figure_in_words(one, best.objectives.get(one.name)) for one in report.objective]
    names = short_names(best.config)
    settings = f" ({describe({names[path]: value for path, value in best.config.items()})})" if names else ""
    saving, pays = _saving(report), report.pays_for_itself_after
    if pays is not None:
        saving += f", and pays for itself after {pays:.1f} runs of that schedule"
    return sentence(f"trial {best.number} is best{settings}: {', '.join(figures)}; {cost}{saving}")


def _figure_in_words(objective: ObjectiveRow, value: float | None) -> str:
    metric = metric_of(objective)
    return f"{metric.words} " + ("not reached" if value is None else metric.format(value))


def caveats(report: SweepReport) -> list[str]:
    """What to keep in mind about the best of several trials."""
    if not report.best or len(report.trials) < 2:
        return []
    is_by_saving = any(one.metric == "compute_saved" for one in report.objective)
    return [CHOSEN_AND_JUDGED, *([HELD_AGAINST_ITS_OWN] if is_by_saving else [])]


def _saving(report: SweepReport) -> str:
    """What the best trial saved. Empty if that is the objective, for then the verdict says it already."""
    if any(one.metric == "compute_saved" for one in report.objective):
        return ""
    best = next(row for row in report.trials if row.number == report.best.number)
    saved = best.compute_saved
    if saved is None:
        return "; the saving against training from scratch was not measured"
    # Between two budgets of the baseline, only the least saving is known.
    if saved < 0:
        return f"; it costs up to {format_share(-saved)} more compute than training from scratch"
    return f"; it saves at least {format_share(saved)} of compute against training from scratch"


def importance_caveats(report: SweepReport) -> list[str]:
    """What to keep in mind about the shares: how many trials they come from, and what these cannot show."""
    shares, name = report.importance, report.objective[0].name
    if not shares:
        return []
    count = sum(row.objectives.get(name) is not None for row in report.trials)
    said = [f"The shares are of {count} trials."]
    if len(shares) == 1:
        said.append("No other path took two values, so its share is 100 %, whatever its effect.")
    if count < ENOUGH_TRIALS:
        said.append(
            f"Fewer than {ENOUGH_TRIALS} trials tell little: even if no path matters, the halves differ by chance, and "
            "the shares still add up to 100 %."
        )
    return said


def summary(report: SweepReport) -> list[str]:
    """The result in sentences, one for each line."""
    search = report.search
    lines = [
        f"Trained {format_flops(search.flops_spent)} FLOPs for trials that cost "
        f"{format_flops(search.flops_claimed)} apart"
        + (f": a sharing factor of {search.sharing_factor:.2f}." if search.sharing_factor else ".")
    ]
    lines += _what_mattered(report)
    if report.pays_for_itself_after is not None:
        lines.append(f"The search pays for itself after {report.pays_for_itself_after:.1f} runs of the best schedule.")
    if report.best is not None:
        lines.append(f"Best: {best_in_words(report)}.")
        lines += caveats(report)
    return lines


def _what_mattered(report: SweepReport) -> list[str]:
    parts = ", ".join(f"{path} {share:.0%}" for path, share in report.importance.items())
    if not parts:
        return []
    first = f"What distinguishes the better half of the trials (PED-ANOVA): {parts}."
    return [" ".join([first, *importance_caveats(report)])]


def failure(report: SweepReport) -> str | None:
    """What went wrong, in one line: that trials failed, or that no trial finished. None if nothing went wrong."""
    rows = report.trials
    failed = [row for row in rows if row.state == "ERRORED"]
    if any(row.state == "FINISHED" for row in rows):
        if not failed:
            return None
        first = f"trial {failed[0].number}: {failed[0].error}"
        return f"sweep {report.name}: {len(failed)} of its {len(rows)} trials failed, the first of them {first}"
    why = failed[0].error if failed else "all were stopped"
    return f"sweep {report.name}: none of its {len(rows)} trials finished: {why}"


def markdown(report: SweepReport) -> str:
    """A page of Markdown: the result in words, what mattered, the trials by rank."""
    columns = ["rank", "trial", "config", *objective_titles(report), loss_title(report), "FLOPs", "state"]
    rows = [
        [*trial_name(report, row), describe(row.config), *trial_figures(report, row), row.state]
        for row in ranked(report)
    ]
    words = map(in_markdown, (verdict(report), *_what_mattered(report)))
    return "\n\n".join([f"# {in_markdown(report.name)}", *words, table_lines(Table("Trials", columns, rows))]) + "\n"
