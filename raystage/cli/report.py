"""`raystage report`: the results of runs, on the terminal, as JSON, Markdown, an HTML page or pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from raystage.cli.options import exits, json_option, open_store, print_json, say, store_option
from raystage.errors import DamagedFile, InputError, RaystageError


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write one page that needs no network.")
@click.option("--figures", type=click.Path(path_type=Path), metavar="FOLDER", help="Draw each run as PNG and SVG.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown, e.g. for a pull request.")
@store_option
@json_option
@exits
def report(
    names: tuple[str, ...],
    html: Path | None,
    figures: Path | None,
    as_markdown: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Show the results of runs: stages, baselines, savings; several runs side by side. For a sweep: its trials, best
    first, what mattered and what the search cost.

    The run that had a name before another schedule took it is NAME/earlier/1, and so on.

    \b
    Example:
      raystage report quickstart --json
      raystage report quickstart faster --html both.html
      raystage report quickstart --markdown --figures pictures
      raystage report when-to-grow --html sweep.html
    """
    if as_json and as_markdown:
        raise InputError("found --json too; expected one of them", key="--markdown")
    opened = open_store(store)
    stored = [read_report(opened, name) for name in names]
    reports = [one.report for one in stored]
    if html is not None and len(reports) > 1 and any(map(is_sweep, reports)):
        found = next(one.name for one in reports if is_sweep(one))
        raise InputError(f"found sweep {found!r} among others; expected it alone, on a page of its own", key="--html")
    written = []
    with _shown(opened, names):
        if html is not None:
            written += _write_page(opened, reports, html)
        if figures is not None:
            written += _write_figures(reports, figures)
        if as_json:
            print_json(stored[0].content if len(stored) == 1 else [one.content for one in stored])
        elif as_markdown:
            _print_markdown(reports)
        elif not written:
            _print_tables(reports)
    for path in written:
        say(f"wrote {path}", err=as_json or as_markdown)


@dataclass(frozen=True)
class StoredReport:
    """content: what report.json holds, with what `raystage evaluate` and `raystage ensemble` found since. report: the
    same, typed."""

    content: Mapping[str, Any]
    report: Any


def read_report(store: Any, name: str) -> StoredReport:
    """The report of a run or a sweep. Its name is that of its folder. Raises InputError, DamagedFile."""
    from raystage.files.typed_json import to_json
    from raystage.storage.evaluations import ensembles, kept
    from raystage.storage.naming import known_run
    from raystage.storage.stored_files import REPORT_FILE, report_from, sweep_report_from

    found = store.read_run(known_run(store, name, "NAME"), REPORT_FILE)
    if found is None:
        raise InputError(f"run {name!r} has no {REPORT_FILE} yet; expected a run that was begun", key="NAME")
    named, place = {**found, "name": name}, (store.run_folder(name) / REPORT_FILE).uri
    if found.get("kind") == "sweep":
        return StoredReport(named, sweep_report_from(named, place))
    report = report_from(named, place)
    since = {"downstream": kept(store, name, report), "ensembles": ensembles(store, name)}
    since = {part: found for part, found in since.items() if found}
    return StoredReport({**named, **to_json(since)}, replace(report, **since))


@contextlib.contextmanager
def _shown(store: Any, names: tuple[str, ...]) -> Iterator[None]:
    """A file without a checksum may hold figures that no run has. An error while it is shown means that it does."""
    from raystage.storage.stored_files import damaged_report

    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if error.__class__.__module__ != "builtins":  # raised by a library
            raise
        places = ", ".join((store.run_folder(name) / "report.json").uri for name in names)
        raise DamagedFile(damaged_report(places, f"{type(error).__name__}: {error}")) from error


def is_sweep(report: Any) -> bool:
    """Whether a report is that of a sweep."""
    from raystage.results.sweep_report import SweepReport

    return isinstance(report, SweepReport)


def _print_tables(reports: list[Any]) -> None:
    from raystage.reports.terminal import final_table
    from raystage.safe_console import SafeConsole
    from raystage.sweeps.terminal import sweep_result_table

    for one in reports:
        SafeConsole().print(sweep_result_table(one) if is_sweep(one) else final_table(one))


def _print_markdown(reports: list[Any]) -> None:
    from raystage.reports.markdown import markdown
    from raystage.sweeps.reports import summary

    pages = (summary.markdown(one) if is_sweep(one) else markdown(one) for one in reports)
    say("\n".join(pages), nl=False)


def _write_page(store: Any, reports: list[Any], file: Path) -> list[Path]:
    from raystage.reports.html import page
    from raystage.sweeps.reports.html import sweep_page

    if is_sweep(reports[0]):
        text = sweep_page(reports[0])
    else:
        text = page([(one, _run_file(store, one.name)) for one in reports])
    with _writing("--html", file, "a file in a folder that is there"):
        file.write_text(text, encoding="utf-8")
    return [file]


def _run_file(store: Any, name: str) -> dict[str, Any] | None:
    """The content of run.json, for the page; None if it cannot be read, since a page without it is better than none."""
    try:
        return store.read_run(name, "run.json")
    except RaystageError as error:
        say(f"left out: {error}", err=True)
        return None


def _write_figures(reports: list[Any], folder: Path) -> list[Path]:
    """Write NAME.png and NAME.svg of each run and sweep, and make the folder."""
    from raystage.reports.figures import run_sheet
    from raystage.reports.image import write_image
    from raystage.sweeps.reports.figures import sweep_sheet

    drawn: list[Path] = []
    with _writing("--figures", folder, "a folder that can be written to"):
        folder.mkdir(parents=True, exist_ok=True)
        for one in reports:
            sheet = sweep_sheet(one) if is_sweep(one) else run_sheet(one)
            drawn += write_image(sheet, folder / f"{one.name.replace('/', '-')}.png")
    return drawn


@contextlib.contextmanager
def _writing(option: str, path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror}); expected {expected}", key=option, file=str(path)
        ) from None
