"""Files to start from: the starter schedule, and the schedules and sweeps that ship as examples."""

from __future__ import annotations

import re
from pathlib import Path

from raystage.errors import InputError

_PACKAGE = Path(__file__).parents[1]
STARTER = Path(__file__).parent / "starter.yaml"
# Where a sweep says which schedule it varies.
_SCHEDULE = re.compile(rb"^schedule: *(\S+)", re.M)


def examples_folder() -> Path:
    """Within the package where that was installed, as setup.py has it; in a checkout `jobs/`."""
    shipped = _PACKAGE / "examples"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "jobs"


def find_examples(folder: Path) -> dict[str, Path]:
    """The examples by name: a schedule's is that of its file, a sweep's begins with `sweeps/`."""
    schedules = {path.stem: path for path in sorted((folder / "schedules").glob("*.yaml"))}
    return schedules | {f"sweeps/{path.stem}": path for path in sorted((folder / "sweeps").glob("*.yaml"))}


def about(example: Path) -> str:
    """What its first comment says."""
    first = example.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def copies(example: Path, target: Path) -> dict[Path, bytes]:
    """The files that a copy of an example at `target` consists of, by path: of a sweep also the schedule that it
    varies, which comes to lie beside it. Raises InputError where that has the target's name."""
    content = example.read_bytes()
    named = _SCHEDULE.search(content)
    if named is None:
        return {target: content}
    schedule = example.parent / named[1].decode()
    if schedule.name == target.name:
        problem = f"found the name of the schedule that {example.name} varies; expected another one"
        raise InputError(problem, key="FILE", file=str(target))
    beside = content[: named.start(1)] + schedule.name.encode() + content[named.end(1) :]
    return {target.with_name(schedule.name): schedule.read_bytes(), target: beside}
