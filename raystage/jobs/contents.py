"""What a job's working directory must contain: the files that a schedule or a sweep names by relative paths.

They keep their places relative to each other, below `FOLDER`, so that the job finds what the submitter finds. A file at
an absolute path, or at a URI, is expected on the cluster. Modules of the user's own go to the top, where Ray has Python
look for them.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystage.config.schedule import parse
from raystage.config.yaml_file import parse_path
from raystage.errors import InputError

FOLDER = "files"
# Where a space, or a list of values, varies one of these keys, the files that it names are needed, too.
PATH_KEYS = frozenset({
    "path", "validation_path", "tokenizer", "chat_template", "from", "teacher", "build", "config", "function",
    "targets",
})  # fmt: skip
# Their values are names, also where there is a file that is called so.
_NO_PATHS = frozenset({"name", "source", "family"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_REFERENCE = re.compile(r"(.+\.py):\w+")
_MODULE = re.compile(r"([A-Za-z_]\w*)(?:\.\w+)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Contents:
    """root: the folder that all files are in. folder: where the job is to run, from there. files: relative to root;
    each may be a folder. modules: of the user's own, which the schedule names; files or folders."""

    root: Path
    folder: Path
    files: tuple[Path, ...]
    modules: tuple[Path, ...] = ()


def contents_of(file: Path, content: Mapping[str, Any], base: tuple[Path, dict[str, Any]] | None = None) -> Contents:
    """What the schedule in a file names. content: what was read of the file, with what overrides it.

    base: of a sweep, the file and the content of the schedule that it varies. Raises InputError.
    """
    schedule_file, schedule = base or (file, dict(content))
    beside, here = schedule_file.absolute().parent, Path.cwd()
    texts = {*_texts(_parsed(schedule_file, schedule))}
    found = {path: place for path, place in _named(schedule, beside, here) if _is_among(path, texts)}
    found |= {path: place for path, place in _named(content, beside, here) if place.is_varied}
    files = {file.absolute(), schedule_file.absolute(), *(Path(path) for path in found)}
    folder = here if any(place.is_here for place in found.values()) else file.absolute().parent
    root = Path(os.path.commonpath([folder, *(path.parent for path in files)]))
    modules = sorted(filter(None, (_own_module(text) for text in texts)))
    return Contents(
        root, folder.relative_to(root), tuple(sorted(path.relative_to(root) for path in files)), tuple(modules)
    )


def read_places(content: Mapping[str, Any]) -> list[str]:
    """The URIs that a schedule names."""
    return sorted({text for text in _texts(content) if "://" in text})


def _parsed(file: Path, schedule: dict[str, Any]) -> dict[str, Any]:
    try:
        return parse(schedule, file.parent).model_dump(mode="json")
    except InputError as error:
        raise error.inside(str(file)) from None


@dataclass(frozen=True)
class _Place:
    """is_here: whether the path is relative to the working directory, and not to the schedule's folder. is_varied:
    whether a key names it that varies."""

    is_here: bool
    is_varied: bool


def _named(content: Mapping[str, Any], beside: Path, here: Path) -> Iterator[tuple[str, _Place]]:
    """Every relative path in plain data that exists: absolute, and where it is relative to."""
    for key, text in _with_keys(content):
        path = match[1] if (match := _REFERENCE.fullmatch(text)) else text
        if not path or key in _NO_PATHS or "://" in path or os.path.isabs(os.path.expanduser(path)):
            continue
        is_varied = _last_name(key) in PATH_KEYS
        for folder in (here, beside):  # in the order in which a schedule looks
            for whole in _matching(os.path.abspath(folder / path)):
                yield whole, _Place(folder == here != beside, is_varied)
            if os.path.exists(folder / path):
                break


def _matching(path: str) -> list[str]:
    """The path if it exists, or what it matches."""
    if os.path.exists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []


def _is_among(path: str, texts: Collection[str]) -> bool:
    """Whether the schedule, in which paths are absolute, has this one: itself, in a reference, or in a pattern."""
    return any(
        path == text or text.startswith(f"{path}:") or (glob.has_magic(text) and path in _matching(text))
        for text in texts
    )


def _with_keys(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain data, with the innermost key that leads to it and is no key of a space's entry."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _with_keys(inner, key if _last_name(key) in PATH_KEYS else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _with_keys(inner, key)


def _texts(value: Any) -> Iterator[str]:
    return (text for _, text in _with_keys(value))


def _last_name(key: str) -> str:
    """'path' of 'stages[1].data.path'."""
    try:
        names = [step for step in parse_path(key) if isinstance(step, str)]
    except InputError:
        return key
    return names[-1] if names else key


def _own_module(text: str) -> Path | None:
    """The file or folder of the module that a reference names, where it is not installed as packages are."""
    match = _MODULE.fullmatch(text)
    if match is None or match[1] == "raystage":
        return None
    try:
        spec = importlib.util.find_spec(match[1])
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return None
    origin = Path(spec.origin)
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    if any(origin.is_relative_to(folder) for folder in standard) or _INSTALLED.intersection(origin.parts):
        return None
    return origin.parent if origin.name == "__init__.py" else origin
