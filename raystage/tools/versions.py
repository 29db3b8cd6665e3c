"""Whether the packages that raystage needs are installed, in accepted versions, and can be imported."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from raystage.tools.findings import Finding, failed, ok, warning

# Packages that always have a line, and that are imported. Their modules have the same names.
SHOWN = ("ray", "torch", "deepspeed", "transformers", "wandb")
PACKAGE = "raystage"
# The tested versions, in a checkout of the repository. An installed package does not have them.
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def check_versions() -> Iterator[Finding]:
    """Python, then every package that raystage needs. Of most packages, only problems are reported."""
    try:
        asked, python = metadata.requires(PACKAGE) or [], metadata.metadata(PACKAGE)["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield failed(PACKAGE, "not installed, so its requirements are unknown", "pip install raystage")
        return
    yield judge_python(platform.python_version(), python)
    yield from check_packages(asked, read_constraints(CONSTRAINTS))


def judge_python(version: str, asked: str) -> Finding:
    if version in SpecifierSet(asked):
        return ok("Python", version)
    return failed("Python", f"{version}, where raystage needs {asked}", "make an environment with another one")


def check_packages(requirements: Iterable[str], tested: Mapping[str, str]) -> Iterator[Finding]:
    """requirements: as in a package's metadata; those of its extras are skipped. tested: versions by name."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = judge_package(requirement, installed_version(requirement.name), tested.get(requirement.name))
        is_shown = requirement.name in SHOWN
        if is_shown and not found.is_failure and (problem := import_problem(requirement.name)):
            found = failed(requirement.name, f"cannot be imported ({problem})", _pip(requirement.name))
        if is_shown or found.state != "ok":
            yield found


def judge_package(requirement: Requirement, installed: str | None, tested: str | None) -> Finding:
    name = requirement.name
    if installed is None:
        return failed(name, "not installed", _pip(name))
    if not requirement.specifier.contains(installed, prereleases=True):
        return failed(name, f"{installed}, where raystage needs {requirement.specifier}", _pip(name))
    if tested is not None and Version(installed).public != Version(tested).public:
        advice = "if something is odd, install with -c constraints.txt"
        return warning(name, f"{installed}; raystage is tested with {tested}", advice)
    return ok(name, installed)


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def import_problem(module: str) -> str | None:
    """Why an installed package cannot be used: an incomplete installation, or a missing system library."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return None


def read_constraints(file: Path) -> dict[str, str]:
    """Versions by name; empty if there is no such file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def _pip(name: str) -> str:
    return f"pip install --upgrade {name}, or all anew: pip install --force-reinstall raystage"
