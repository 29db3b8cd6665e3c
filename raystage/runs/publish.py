"""What lies beside report.json once a run has ended: the report as a page, as Markdown and as figures."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from raystage.reports.figures import run_sheet
from raystage.reports.html import page
from raystage.reports.image import write_image
from raystage.reports.markdown import markdown
from raystage.results.report import RunReport
from raystage.storage.evaluations import ensembles
from raystage.storage.store import Store
from raystage.storage.stored_files import RUN_FILE


def publish(store: Store, report: RunReport, draws: bool) -> RunReport:
    """Write all of it; returns the report with what was measured of ensembles. draws: the curves, too, as images."""
    report = replace(report, ensembles=ensembles(store, report.name))
    folder = store.run_folder(report.name)
    folder.write_whole("report.html", page([(report, store.read_run(report.name, RUN_FILE))]).encode())
    folder.write_whole("report.md", markdown(report).encode())
    if draws:
        with tempfile.TemporaryDirectory() as work:
            for figure in write_image(run_sheet(report), Path(work, "curves.png")):
                folder.write_whole(figure.name, figure.read_bytes())
    return report
