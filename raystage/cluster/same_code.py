"""Workers run the driver's code, or none: where they import raystage from, and whether it is the same there.

Ray would have them import from the driver's working directory first, and its script's folder, where the driver itself
looks last or not at all: a file `numpy.py` or another clone of this repository there would be theirs alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ray.job_config import JobConfig

import raystage

# The folder, the version ('' where it is not installed), the digest of all of its sources.
Found = tuple[str, str, str]


class CodeOfThisProcess(JobConfig):
    """Has workers import from where a fresh Python would, and raystage from where this process has it. For `ray.init`.

    The method is Ray's own; a test holds it."""

    def _serialize(self) -> str:
        self._py_driver_sys_path[:] = [] if self._runtime_env_has_working_dir() else import_path()
        return super()._serialize()


def import_path() -> list[str]:
    """The folder that raystage lies in, where a fresh Python would find none or another one."""
    code = "import importlib.util as util; found = util.find_spec('raystage'); print(found.origin if found else '')"
    fresh = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    here = Path(raystage.__file__).resolve()
    found = fresh.stdout.strip()
    return [] if found and Path(found).resolve() == here else [str(here.parents[1])]


def make_examiner() -> Callable[[], Found | None]:
    """A function that looks at raystage where it is called; None where there is none.

    Nested, so that it travels as what it does: by its name it would be looked for in the code that it is to look at.
    """

    def examine() -> Found | None:
        spec = importlib.util.find_spec("raystage")
        if spec is None or not spec.origin:
            return None
        folder, digest = Path(spec.origin).parent, hashlib.sha256()
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
        versions = [one.version for one in importlib.metadata.distributions(name="raystage")]
        return str(folder), versions[0] if versions else "", digest.hexdigest()[:12]

    return examine


def make_comparer() -> Callable[[], str | None]:
    """A function that says, where it is called, what is wrong with the raystage there; None where it is this one.

    Versions are for people: an installed one does not change with its sources, and a folder need not be installed.
    """
    examine = make_examiner()
    folder, version, digest = examine()

    def compare() -> str | None:
        found = examine()
        if found is not None and found[2] == digest:
            return None
        there = f"{found[0]} (version {found[1] or '?'}, sources {found[2]})" if found else "no raystage"
        return (
            f"node {socket.gethostname()} has {there}, the driver {folder} (version {version or '?'}, sources "
            f"{digest}): install the driver's raystage on every node, and change no sources while it runs"
        )

    return compare
