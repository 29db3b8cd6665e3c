"""The report of a sweep as one HTML page that needs nothing else: no network and no script. And all files of the
report.

The first line is the result in words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from raystage.config.schedule import parse
from raystage.reports.formats import Table
from raystage.reports.html import STATES, configuration, templates
from raystage.reports.image import write_image
from raystage.results.sweep_report import SweepReport, TrialRow
from raystage.storage.store import Store
from raystage.sweeps.reports.figures import Drawing, coordinates_drawing, front_drawing, sweep_sheet, tree_drawing
from raystage.sweeps.reports.layout import MOST_LEAVES, MOST_LINES
from raystage.sweeps.reports.summary import (
    best_in_words,
    better,
    caveats,
    importance_caveats,
    loss_title,
    markdown,
    metric_of,
    objective_titles,
    ranked,
    short_names,
    trial_figures,
    trial_name,
    verdict,
)
from raystage.sweeps.space import format_value
from raystage.sweeps.trials import SweepPlan
from raystage.units import format_flops, format_seconds, format_share

BEST_FILE = "best.yaml"
MARKDOWN_FILE = "report.md"
PAGE_FILE = "report.html"
FIGURE_FILE = "sweep.png"
# Nobody reads more rows than this. report.json has all of them.
MOST_ROWS = 200


@dataclass(frozen=True)
class Picture:
    identity: str
    title: str
    drawing: Drawing
    note: str


@dataclass(frozen=True)
class SweepView:
    """All that the page shows. facts: (name, value) in large type. Empty parts are left out."""

    name: str
    state: str
    trouble: str | None
    verdict: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    schedule: str | None


def sweep_page(report: SweepReport) -> str:
    """The page of one sweep."""
    best = report.best
    schedule = best.schedule if best else None
    view = SweepView(
        name=report.name,
        state=report.state,
        trouble=STATES.get(report.state),
        verdict=verdict(report),
        facts=_facts(report),
        tables=[table for table in (trial_table(report), _importance_table(report)) if table.rows],
        pictures=_pictures(report),
        schedule=configuration(schedule) if schedule else None,
    )
    return templates().get_template("sweep.html").render(title=f"raystage: {view.name}", sweep=view)


# --- words ------------------------------------------------------------------------------------


def _facts(report: SweepReport) -> list[tuple[str, str]]:
    search, states = report.search, [row.state for row in report.trials]
    facts = [("trials", str(len(states)))]
    for state, name in (("RUNNING", "running"), ("ABORTED", "stopped early"), ("ERRORED", "failed")):
        facts += [(name, str(states.count(state)))] if state in states else []
    facts += [("stages trained", f"{search.stages_trained} of {search.stages_claimed}")]
    facts += [("sharing factor", f"{search.sharing_factor:.2f}")] if search.sharing_factor else []
    facts += [
        ("FLOPs trained", format_flops(search.flops_spent)),
        ("FLOPs apart", format_flops(search.flops_claimed)),
        ("wall-clock", format_seconds(search.seconds)),
    ]
    pays = report.pays_for_itself_after
    return facts + ([("pays for itself after", f"{pays:.1f} runs")] if pays is not None else [])


# --- tables -----------------------------------------------------------------------------------


def trial_table(report: SweepReport) -> Table:
    """The trials, the best first, with a column for each path."""
    rows = ranked(report)
    names = short_names(dict.fromkeys(path for row in rows for path in row.config))
    columns = ["rank", "trial", *names.values(), *objective_titles(report), loss_title(report), "FLOPs", "state"]
    several = len(report.objective) > 1
    cells = [_cells(report, row, names) for row in rows[:MOST_ROWS]]
    notes = [f"Ranked by {metric_of(report.objective[0]).words} ({better(report.objective[0])})."]
    notes += ["A star: no other trial is better in one objective and no worse in the others."] if several else []
    notes += [f"The first {MOST_ROWS} of {len(rows)}; report.json has all."] if len(rows) > MOST_ROWS else []
    notes += caveats(report)
    return Table("Trials", columns, cells, " ".join(notes))


def _cells(report: SweepReport, row: TrialRow, paths: Iterable[str]) -> list[str]:
    config = [format_value(row.config[path]) if path in row.config else "-" for path in paths]
    state = row.state + (f": {row.error}" if row.error else "")
    return [*trial_name(report, row), *config, *trial_figures(report, row), state]


def _importance_table(report: SweepReport) -> Table:
    note = (
        "How much the values of a path distinguish the better half of the trials from the rest; the sum is 100 % "
        "(PED-ANOVA, Watanabe et al., 2304.10255)."
    )
    rows = [(path, format_share(share)) for path, share in report.importance.items()]
    return Table("What mattered", ("path", "share"), rows, " ".join([note, *importance_caveats(report)]))


# --- pictures ---------------------------------------------------------------------------------


def _pictures(report: SweepReport) -> list[Picture]:
    metric = metric_of(report.objective[0]).words
    made = (
        ("tree", "Stages", tree_drawing(report), _TREE_NOTE + _best_of(report, MOST_LEAVES)),
        (
            "coordinates",
            "Trials across the space",
            coordinates_drawing(report),
            f"A line is a finished trial: the best fifth by {metric} is strongest, the last fifth faintest, the "
            f"best of all in orange.{_best_of(report, MOST_LINES)}",
        ),
        (
            "front",
            "One objective against the other",
            front_drawing(report),
            "The dashed line connects the trials that no other one beats in one objective without a loss in the other.",
        ),
    )
    return [Picture(identity, title, drawing, note) for identity, title, drawing, note in made if drawing]


_TREE_NOTE = (
    "Every stage once, with its held-out loss and its own values. A disc is shared by the number of trials in "
    "it, a ring belongs to one trial. A dashed line leads from a stage to a longer version that continued it. The best "
    "trial is orange."
)


def _best_of(report: SweepReport, most: int) -> str:
    count = len(report.trials)
    return f" The best {most} of {count} trials are drawn." if count > most else ""


# --- files ------------------------------------------------------------------------------------


def write_papers(store: Store, plan: SweepPlan, report: SweepReport) -> None:
    """Write the report as Markdown, as a page and as an image, and the best schedule, beside report.json."""
    folder = store.run_folder(report.name)
    folder.write_whole(MARKDOWN_FILE, markdown(report).encode())
    folder.write_whole(PAGE_FILE, sweep_page(report).encode())
    with tempfile.TemporaryDirectory() as work:
        for figure in write_image(sweep_sheet(report), Path(work, FIGURE_FILE)):
            folder.write_whole(figure.name, figure.read_bytes())
    best = report.best
    if best is not None and best.schedule is not None:
        folder.write_whole(BEST_FILE, best_schedule(plan, report).encode())


def best_schedule(plan: SweepPlan, report: SweepReport) -> str:
    """The schedule of the best trial as YAML. Its paths are absolute, so that it runs from any folder."""
    schedule = parse(report.best.schedule, plan.sweep.schedule_file.parent)
    head = f"# Sweep {plan.sweep.name}: {best_in_words(report)}.\n"
    return head + yaml.safe_dump(schedule.content(), sort_keys=False, allow_unicode=True)
