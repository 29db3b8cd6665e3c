"""The files in cluster/, as their readers read them, with and without their options."""

from __future__ import annotations

import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name

from raystage.cli import main
from raystage.cli.options import patience_seconds
from raystage.config.schedule import load
from raystage.planning.build import make_plan

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path.relative_to(CLUSTER).as_posix() for path in CLUSTER.rglob("*") if path.is_file())
KUBERAY = [name for name in FILES if name.startswith("kuberay/")]
LAUNCHER = [name for name in FILES if name.startswith("launcher/") and name.endswith(".yaml")]
SCRIPTS = [name for name in FILES if name.endswith(".sh")]
DOCKERFILES = [name for name in FILES if name.startswith("docker/")]
# Within this a cloud starts a machine with GPUs, pulls an image on it, and has it join the cluster.
NODE_START_SECONDS = 1800
_OPTION = re.compile(r"^#\+", re.MULTILINE)


def text_of(name: str) -> str:
    """A cluster file with continued lines joined, within comments too."""
    return re.sub(r"\\\n[ #]*", "", (CLUSTER / name).read_text(encoding="utf-8"))


def commands(name: str, start: str) -> list[list[str]]:
    """The arguments after each `start` in the file; what is quoted in prose ends at the backquote."""
    return [shlex.split(found) for found in re.findall(rf"(?<!`){re.escape(start)} ([^`\n]*)", text_of(name))]


def documents(name: str, with_options: bool = False) -> list[dict[str, Any]]:
    """with_options: with every line that `#+` keeps out."""
    text = (CLUSTER / name).read_text(encoding="utf-8")
    return list(yaml.safe_load_all(_OPTION.sub("", text) if with_options else text))


def document(name: str, kind: str, with_options: bool = False) -> dict[str, Any]:
    (found,) = (one for one in documents(name, with_options) if one["kind"] == kind)
    return found


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def planned(arguments: list[str]) -> tuple[Any, str]:
    """The plan of a `raystage run` with these arguments, and its store. Raises what raystage says of wrong ones."""
    store = main.main.commands["run"].make_context("run", list(arguments)).params["store"]
    overrides = tuple(value for option, value in pairwise(arguments) if option == "--set")
    return _plan(arguments[0], overrides), store


def patience_of(arguments: list[str]) -> float:
    """How many seconds a `raystage run` with these arguments waits for nodes."""
    return patience_seconds(main.main.commands["run"].make_context("run", list(arguments)).params["patience"])


@cache
def _plan(schedule: str, overrides: tuple[str, ...]) -> Any:
    return make_plan(load(ROOT / schedule, overrides))
