"""Reports as Markdown."""

from __future__ import annotations

from raystage.reports.formats import Table, format_interval
from raystage.reports.tables import environment_rows, tables
from raystage.results.report import RunReport, SavingsPart
from raystage.results.seeds import OverSeeds
from raystage.safe_text import in_markdown
from raystage.units import format_share


def markdown(report: RunReport) -> str:
    """A short page: the verdict, the stages, what growing did, the baseline, the doubts."""
    doubts = ["## Open to doubt", "\n".join(f"- {in_markdown(warning)}" for warning in report.warnings)]
    blocks = [
        f"**{in_markdown(sentence(report.savings.verdict))}**",
        _about(report),
        *map(table_lines, tables(report)),
    ]
    rows = environment_rows(report)
    where = ["## Environment", "\n".join(f"- {name}: {in_markdown(value)}" for name, value in rows)] if rows else []
    return "\n\n".join(blocks + (doubts if report.warnings else []) + where) + "\n"


def _about(report: RunReport) -> str:
    name, state = (in_markdown(one) for one in (report.name, report.state))
    about = f"Run `{name}`: {state}, {report.length_per_parameter:.3g} {report.unit} per parameter."
    return " ".join([about, *map(in_markdown, beside_the_verdict(report.savings))])


def table_lines(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join([f"## {table.title}", "", *(f"| {' | '.join(map(in_markdown, line))} |" for line in lines)])


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def beside_the_verdict(savings: SavingsPart) -> list[str]:
    """The other results of the comparison, in sentences."""
    half = "Losses are those of the half of the held-out text by which no value was chosen."
    judged = [half] if savings.is_judged_on_half else []
    if savings.seeds:
        return [*_over_seeds(savings.seeds), *judged]
    shares = (("Wall-clock time", savings.time_saved), ("Tokens", savings.duration_saved))
    said = [f"{what} saved: {format_share(share)}." for what, share in shares if share is not None]
    at_equal_flops = savings.at_equal_flops
    return [*said, *([sentence(at_equal_flops)] if at_equal_flops else []), *judged]


def _over_seeds(over: OverSeeds) -> list[str]:
    shares = (("Wall-clock time", over.time_saved), ("Tokens", over.duration_saved))
    said = [f"{what} saved: {format_interval(found)}." for what, found in shares if found]
    difference = over.loss_difference_at_equal_flops
    between = format_interval(difference, "{:+.3f}".format) if difference else None
    said += [f"Loss difference at equal FLOPs: {between}."] if between else []
    return [*said, over.covers] if over.covers else said
