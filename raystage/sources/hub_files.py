"""The files of a data set on the Hugging Face Hub: which belong to a split, and at which commit.

What a repository's README declares under `configs` counts; without it the names of files and folders do, by the rules
of Hugging Face's library `datasets` (docs: "Structure your repository").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raystage.errors import InputError
from raystage.lazy import huggingface_hub
from raystage.models import hub
from raystage.sources import jsonl, parquet
from raystage.sources.places import glob_pattern

# The branch to which the Hub itself converts data sets.
CONVERTED = "refs/convert/parquet"
_ENDINGS = (*parquet.ENDINGS, *jsonl.ENDINGS)
# Words in names that mean a split.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART = re.compile(r"^(?P<before>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<after>\D.*)$")
_LARGEST_README_BYTES = 2**20


def commit_of(name: str, subset: str | None, split: str) -> str:
    """The name with the commit whose files are read: its own, or that of the Hub's conversion. Raises InputError."""
    repository, revision = hub.parts(name)
    folder, names = _listed(repository, revision, "data.path")
    if revision is None and not choose(names, _readme(folder), subset, split):
        with_converted = _converted(repository)
        if with_converted:
            folder, _ = with_converted
    return f"{repository}@{folder.name}"


def download(name: str, subset: str | None, split: str, key: str) -> list[Path]:
    """The files of a split, in this machine's cache. Raises InputError where there are none."""
    repository, revision = hub.parts(name)
    folder, names = _listed(repository, revision, key)
    chosen = choose(names, _readme(folder), subset, split)
    if not chosen:
        of = f"the split {split!r}" + (f" of {subset!r}" if subset else "")
        there = ", ".join(map(repr, sorted(names)[:8])) or "no files"
        problem = f"found no Parquet or JSON-lines files for {of} in {name!r}; it has {there}; expected such files"
        raise InputError(problem, key="data.split")
    _check_parts(name, chosen, key)
    place = _snapshot(repository, revision, chosen, key)
    missing = [one for one in chosen if not (place / one).is_file()]
    if missing:
        problem = f"{missing[0]!r} of {name!r} is not in this machine's cache; expected a Hub that can be reached"
        raise InputError(problem, key=key)
    return [place / one for one in chosen]


def choose(names: Sequence[str], readme: Mapping[str, Any], subset: str | None, split: str) -> list[str]:
    """The files of a split, sorted; none where the repository has none. Raises InputError for a wrong subset."""
    files = sorted(name for name in names if name.endswith(_ENDINGS) and not name.startswith("."))
    declared = _declared(readme, subset)
    if declared is not None:
        patterns = declared.get(split, [])
        return [name for name in files if any(_fits(name, pattern) for pattern in patterns)]
    if subset is not None:
        files = [name for name in files if subset in name.split("/")[:-1]]
    named = [name for name in files if _has_word(name, _WORDS.get(split, (split,)))]
    is_without_splits = not any(_has_word(name, words) for name in files for words in _WORDS.values())
    return named or (files if split == "train" and is_without_splits else [])


def _declared(readme: Mapping[str, Any], subset: str | None) -> dict[str, list[str]] | None:
    """By split the patterns that a README declares for a subset; None where it declares none."""
    listed = readme.get("configs")
    configs = (
        [one for one in listed if isinstance(one, dict) and "data_files" in one] if isinstance(listed, list) else []
    )
    if not configs:
        return None
    names = [str(one.get("config_name")) for one in configs]
    if subset is not None:
        found = [one for one, name in zip(configs, names, strict=True) if name == subset]
    else:
        preferred = [one for one in configs if one.get("default") is True or one.get("config_name") == "default"]
        found = preferred or (configs if len(configs) == 1 else [])
    if not found:
        what = "none" if subset is None else repr(subset)
        problem = f"found {what}; expected one of the data set's subsets: {', '.join(map(repr, names))}"
        raise InputError(problem, key="data.subset")
    return _patterns(found[0]["data_files"])


def _patterns(data_files: object) -> dict[str, list[str]]:
    if isinstance(data_files, str):
        return {"train": [data_files]}
    found: dict[str, list[str]] = {}
    for one in data_files if isinstance(data_files, list) else []:
        if isinstance(one, str):
            found.setdefault("train", []).append(one)
        elif isinstance(one, dict) and "split" in one:
            path = one.get("path")
            paths = path if isinstance(path, list) else [path]
            found.setdefault(str(one["split"]), []).extend(each for each in paths if isinstance(each, str))
    return found


def _fits(name: str, pattern: str) -> bool:
    return glob_pattern(pattern.removeprefix("./")).fullmatch(name) is not None


def _has_word(name: str, words: Sequence[str]) -> bool:
    return any(re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", name) for word in words)


def _check_parts(name: str, files: Sequence[str], key: str) -> None:
    """Refuse an incomplete copy: a cache may have some of the files only."""
    counts: dict[tuple[str, int, str], int] = {}
    for part in filter(None, map(_PART.match, files)):
        group = part["before"], int(part["count"]), part["after"]
        counts[group] = counts.get(group, 0) + 1
    for (before, count, _), found in counts.items():
        if found < count:
            problem = f"found {found} of the {count} files {before!r} of {name!r} in this machine's cache"
            raise InputError(f"{problem}; expected all of them, or a Hub that can be reached", key=key)


def _listed(repository: str, revision: str | None, key: str) -> tuple[Path, list[str]]:
    """The folder of the commit in this machine's cache, with the README in it, and the names of all files: as the Hub
    lists them, or those in the cache where the Hub cannot be reached."""
    folder = _snapshot(repository, revision, ["README.md"], key)
    try:
        names = huggingface_hub.list_repo_files(repository, revision=folder.name, repo_type="dataset")
    except (OSError, ValueError):
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return folder, list(names)


def _converted(repository: str) -> tuple[Path, list[str]] | None:
    try:
        return _listed(repository, CONVERTED, "data.path")
    except InputError:
        return None


def _snapshot(repository: str, revision: str | None, files: Sequence[str], key: str) -> Path:
    name = f"{repository}@{revision}" if revision else repository
    return hub.snapshot(name, files, key, kind="dataset")


def _readme(folder: Path) -> Mapping[str, Any]:
    """What stands between the first two lines of dashes; nothing where that is no YAML."""
    try:
        if (folder / "README.md").stat().st_size > _LARGEST_README_BYTES:
            return {}
        text = (folder / "README.md").read_text("utf-8")
        found = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
