"""Holds that workers run the same raystage sources as the driver, and the same versions of what computes the bits.

Ray would have workers import from the driver's working directory and its script's folder first. The driver itself does
not: it looks there last or not at all. A file `numpy.py` or another clone of this repository there would be used by
the workers alone. So workers import from `import_path`, and compare their sources with the driver's.
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

import raystage

# A worker with another version would train other bits than the others, or wait for them for ever. Ray looks at its own
# version and at Python's. Builds for other devices (2.13.0+cpu) count as the same.
COMPARED = ("torch", "deepspeed", "transformers")

# Folder, version ('' if it is not installed), digest of all its source files.
Found = tuple[str, str, str]


def import_path() -> list[str]:
    """What workers must import from first: the folder that contains raystage, unless a fresh Python finds the same
    raystage anyway."""
    code = "import importlib.util as util; found = util.find_spec('raystage'); print(found.origin if found else '')"
    fresh = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    here = Path(raystage.__file__).resolve()
    found = fresh.stdout.strip()
    return [] if found and Path(found).resolve() == here else [str(here.parents[1])]


def make_examiner() -> Callable[[], Found | None]:
    """A function that describes the raystage of the process that calls it; None if there is none.

    It is nested, so that Ray pickles its code. A function at the top of a module would be pickled by its name, and
    imported from the very sources that it has to examine.
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
    """A function that compares the raystage of the process that calls it, and its packages, with those of this process.

    It returns what is different, in words; None if nothing is. Versions of raystage are only shown: they may be equal
    although sources were edited.
    """
    examine, list_versions = make_examiner(), _make_lister()
    (folder, version, digest), here = examine(), list_versions()

    def compare() -> str | None:
        found = examine()
        if found is None or found[2] != digest:
            there = f"{found[0]} (version {found[1] or '?'}, sources {found[2]})" if found else "no raystage"
            return (
                f"node {socket.gethostname()} has {there}, the driver {folder} (version {version or '?'}, sources "
                f"{digest}): install the driver's raystage on every node, and change no sources while it runs"
            )
        there = list_versions()
        if other := [name for name in here if there[name] != here[name]]:
            differing = ", ".join(f"{name} {there[name]} (the driver {here[name]})" for name in other)
            return (
                f"node {socket.gethostname()} has {differing}: install the same versions on every node, for example "
                f"with pip install -c constraints.txt"
            )
        return None

    return compare


def _make_lister() -> Callable[[], dict[str, str]]:
    """A function that lists the versions of `COMPARED` where it is called. Nested, as that of `make_examiner`."""
    names = COMPARED

    def list_versions() -> dict[str, str]:
        found = {name: [one.version for one in importlib.metadata.distributions(name=name)] for name in names}
        return {name: versions[0].partition("+")[0] if versions else "none" for name, versions in found.items()}

    return list_versions
