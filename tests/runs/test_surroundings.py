"""A report says when, where, on what and by which command it was made."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from factories import make_records, make_schedule
from raystage.planning.build import make_plan
from raystage.reports.build import build_report
from raystage.reports.html import page
from raystage.reports.markdown import markdown
from raystage.reports.tables import environment_rows
from raystage.runs.surroundings import cpu_model, gpu_names, surroundings


def test_a_cpu_is_called_what_linux_calls_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: another\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Fast CPU @ 3 GHz"
    assert cpu_model(tmp_path / "none")


def test_gpus_are_called_what_their_driver_calls_them(tmp_path: Path) -> None:
    for number in (0, 1):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t NVIDIA H20{number}\nIRQ: 16\n")
    assert gpu_names(tmp_path) == ["NVIDIA H200", "NVIDIA H201"]
    assert gpu_names(tmp_path / "none") == []


def test_every_form_of_the_report_has_them(tmp_path: Path) -> None:
    found = surroundings(86_400.0, "raystage run s.yaml --store s3://key:hunter2@bucket")
    assert found["date"] == "1970-01-02T00:00:00+00:00"
    assert found["host"] == platform.node()
    assert found["memory_bytes"] > 0
    assert "hunter2" not in found["command"]
    plan = make_plan(make_schedule(tmp_path))
    report = build_report(plan, make_records(plan, 2.2, (2.6, 2.4, 2.1)), {}, found)
    rows = dict(environment_rows(report))
    assert {"date", "command", "host", "CPU", "CPU cores", "memory", "GPUs", "python", "raystage"} <= rows.keys()
    for form in (markdown(report), page([(report, None)])):
        assert "1970-01-02T00:00:00+00:00" in form
        assert rows["memory"] in form


@pytest.mark.parametrize("width", [40, 80])
def test_the_terminal_has_them_too(tmp_path: Path, width: int) -> None:
    import io

    from rich.console import Console

    from raystage.reports.terminal import final_table

    plan = make_plan(make_schedule(tmp_path))
    report = build_report(plan, make_records(plan, 2.2, (2.6, 2.4, 2.1)), {}, surroundings(0.0, "raystage run s.yaml"))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(final_table(report))
    text = " ".join(console.file.getvalue().split())
    assert "date 1970-01-01T00:00:00+00:00" in text
    assert "command raystage run s.yaml" in text
