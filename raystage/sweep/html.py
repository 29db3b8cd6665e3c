"""The report of a sweep as one page of HTML that needs nothing else: no network, no script, pictures drawn in it.

`report` is what `build_sweep_report` made, with the importance of paths. The first line is the result in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystage.report.build import sentence
from raystage.report.html import STATES, configuration, templates
from raystage.report.tables import Table
from raystage.results.savings import format_flops, format_share
from raystage.sweep.layout import MOST_LEAVES, MOST_LINES, better, metric_of, ranked, short_names
from raystage.sweep.panels import Drawing, coordinates_drawing, front_drawing, tree_drawing
from raystage.sweep.space import describe, format_value
from raystage.units import format_seconds

# More rows than this nobody reads; report.json has them all.
MOST_ROWS = 200

# Of fewer trials the shares of what mattered say little.
ENOUGH_TRIALS = 20
CHOSEN_AND_JUDGED = (
    "The best trial was chosen by the text that it is judged on, and the best of several looks better there than it is."
)
HELD_AGAINST_ITS_OWN = (
    "Each trial is held against baselines of its own, which train with its values where they are not of the staging: "
    "the most may be saved where the values are worst for the baseline."
)


@dataclass(frozen=True)
class Picture:
    identity: str
    title: str
    drawing: Drawing
    note: str


@dataclass(frozen=True)
class SweepView:
    """All that the page says. facts: (name, value) in large; empty parts are left out."""

    name: str
    state: str
    trouble: str | None
    verdict: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    schedule: str | None


def sweep_page(report: Mapping[str, Any]) -> str:
    """The page of one sweep."""
    best = report["best"]
    schedule = best.get("schedule") if best else None
    view = SweepView(
        name=report["name"],
        state=report["state"],
        trouble=STATES.get(report["state"]),
        verdict=verdict(report),
        facts=_facts(report),
        tables=[table for table in (trial_table(report), _importance_table(report)) if table.rows],
        pictures=_pictures(report),
        schedule=configuration(schedule) if schedule else None,
    )
    return templates().get_template("sweep.html").render(title=f"raystage: {view.name}", sweep=view)


# --- words ------------------------------------------------------------------------------------


def verdict(report: Mapping[str, Any]) -> str:
    """The result in a sentence or two: which trial is best, what it saves, what the search cost."""
    best, search = report["best"], report["search"]
    cost = f"the search trained {format_flops(search['flops_spent'])} FLOPs"
    if search["flops_spent"] and search["flops_spent"] < search["flops_claimed"]:
        cost += f", {search['sharing_factor']:.2f} times fewer than its trials cost apart"
    if best is None:
        return f"No trial came to its end; {cost}."
    figures = [_figure_in_words(one, best["objectives"].get(one["metric"])) for one in report["objective"]]
    names = short_names(best["config"])
    settings = f" ({describe({names[path]: value for path, value in best['config'].items()})})" if names else ""
    saving, pays = _saving(report), report["pays_for_itself_after"]
    if pays is not None:
        saving += f", and pays for itself after {pays:.1f} runs of that schedule"
    return sentence(f"trial {best['number']} is best{settings}: {', '.join(figures)}; {cost}{saving}")


def _figure_in_words(objective: Mapping[str, Any], value: float | None) -> str:
    metric = metric_of(objective)
    return f"{metric.words} " + ("not reached" if value is None else metric.format(value))


def caveats(report: Mapping[str, Any]) -> list[str]:
    """What to bear in mind of the best trial of several."""
    if not report["best"] or len(report["trials"]) < 2:
        return []
    is_by_saving = any(one["metric"] == "compute_saved" for one in report["objective"])
    return [CHOSEN_AND_JUDGED, *([HELD_AGAINST_ITS_OWN] if is_by_saving else [])]


def _saving(report: Mapping[str, Any]) -> str:
    """What the best trial saved, unless that is what was asked for and so has been said already."""
    if any(one["metric"] == "compute_saved" for one in report["objective"]):
        return ""
    best = next(row for row in report["trials"] if row["number"] == report["best"]["number"])
    saved = best["compute_saved"]
    if saved is None:
        return "; against training from scratch it was not measured"
    # Of what lies between two budgets of the baseline the least is known.
    if saved < 0:
        return f"; it costs up to {format_share(-saved)} more compute than training from scratch"
    return f"; it saves at least {format_share(saved)} of compute against training from scratch"


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    search, states = report["search"], [row["state"] for row in report["trials"]]
    facts = [("trials", str(len(states)))]
    for state, name in (("RUNNING", "running"), ("ABORTED", "stopped early"), ("ERRORED", "failed")):
        facts += [(name, str(states.count(state)))] if state in states else []
    facts += [("stages trained", f"{search['stages_trained']} of {search['stages_claimed']}")]
    facts += [("sharing factor", f"{search['sharing_factor']:.2f}")] if search["sharing_factor"] else []
    facts += [
        ("FLOPs trained", format_flops(search["flops_spent"])),
        ("FLOPs apart", format_flops(search["flops_claimed"])),
        ("wall-clock", format_seconds(search["seconds"])),
    ]
    pays = report["pays_for_itself_after"]
    return facts + ([("pays for itself after", f"{pays:.1f} runs")] if pays is not None else [])


# --- tables -----------------------------------------------------------------------------------


def trial_table(report: Mapping[str, Any]) -> Table:
    """The trials, the best first; a column for each path."""
    rows = ranked(report)
    names = short_names(dict.fromkeys(path for row in rows for path in row["config"]))
    objectives = [one for one in report["objective"] if one["metric"] != "eval_loss"]
    figures = [*(metric_of(one).words for one in objectives), "held-out loss", "FLOPs"]
    columns = ["rank", "trial", *names.values(), *figures, "state"]
    several = len(report["objective"]) > 1
    cells = [_cells(row, list(names), objectives, several) for row in rows[:MOST_ROWS]]
    notes = [f"Ranked by {metric_of(report['objective'][0]).words} ({better(report['objective'][0])})."]
    notes += ["A star: no other trial is better in one objective and no worse in the others."] if several else []
    notes += [f"The first {MOST_ROWS} of {len(rows)}; report.json has all."] if len(rows) > MOST_ROWS else []
    notes += caveats(report)
    return Table("Trials", columns, cells, " ".join(notes))


def _cells(
    row: Mapping[str, Any], paths: Sequence[str], objectives: Sequence[Mapping[str, Any]], several: bool
) -> list[str]:
    rank = "-" if row["rank"] is None else f"{row['rank']}{'*' if several and row['is_pareto'] else ''}"
    config = [format_value(row["config"][path]) if path in row["config"] else "-" for path in paths]
    figures = [row["objectives"].get(one["metric"]) for one in objectives]
    found = [
        "-" if value is None else metric_of(one).format(value) for one, value in zip(objectives, figures, strict=True)
    ]
    loss = "-" if row["eval_loss"] is None else f"{row['eval_loss']:.4f}"
    flops = "-" if row["flops"] is None else format_flops(row["flops"])
    state = row["state"] + (f": {row['error']}" if row["error"] else "")
    return [rank, str(row["number"]), *config, *found, loss, flops, state]


def _importance_table(report: Mapping[str, Any]) -> Table:
    note = (
        "How far the values of a path set the better half of the trials apart from the rest, all together 100 % "
        "(PED-ANOVA, Watanabe et al., 2304.10255)."
    )
    rows = [(path, format_share(share)) for path, share in report.get("importance", {}).items()]
    return Table("What mattered", ("path", "share"), rows, " ".join([note, *importance_caveats(report)]))


def importance_caveats(report: Mapping[str, Any]) -> list[str]:
    """What to keep in mind about the shares, in sentences: how many trials they are of, and what these cannot tell."""
    shares, metric = report.get("importance", {}), report["objective"][0]["metric"]
    if not shares:
        return []
    count = sum(row["objectives"].get(metric) is not None for row in report["trials"])
    said = [f"The shares are of {count} trials."]
    if len(shares) == 1:
        said.append("No other path took two values: all of it is its share, whatever it does.")
    if count < ENOUGH_TRIALS:
        said.append(
            f"Fewer than {ENOUGH_TRIALS} trials tell little: where no path matters, chance sets the halves apart, and "
            "the shares are 100 % together all the same."
        )
    return said


# --- pictures ---------------------------------------------------------------------------------


def _pictures(report: Mapping[str, Any]) -> list[Picture]:
    metric = metric_of(report["objective"][0]).words
    made = (
        ("tree", "Stages", tree_drawing(report), _TREE_NOTE + _best_of(report, MOST_LEAVES)),
        (
            "coordinates",
            "Trials across the space",
            coordinates_drawing(report),
            f"A line is a trial that came to its end: the best fifth by {metric} strongest, the last faintest, the "
            f"best of all in orange.{_best_of(report, MOST_LINES)}",
        ),
        (
            "front",
            "One objective against the other",
            front_drawing(report),
            "Along the dashed line are the trials that no other one beats in one without being worse in the other.",
        ),
    )
    return [Picture(identity, title, drawing, note) for identity, title, drawing, note in made if drawing]


_TREE_NOTE = (
    "Every stage once, with its held-out loss and what sets it apart. A disc is shared by as many trials as it says, a "
    "ring is one trial's alone; along a dashed line a longer version went on from a shorter one. The best trial "
    "is orange."
)


def _best_of(report: Mapping[str, Any], most: int) -> str:
    count = len(report["trials"])
    return f" The best {most} of {count} trials are drawn." if count > most else ""
