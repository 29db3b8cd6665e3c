"""Names on the Hugging Face Hub: `org/model`, or `org/model@revision`. A name's content changes; a commit's does not.

So a name is resolved to a commit once, when a schedule is planned: by the Hub, or by the cache of this machine where
the Hub cannot be reached. From then on it is written `org/model@commit` and means the same on every node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from raystage.errors import InputError
from raystage.lazy import huggingface_hub
from raystage.units import first_line

_NAME = re.compile(r"(?P<repository>[\w-][\w.-]*(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "config.json",
    "chat_template*",
)  # fmt: skip


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def parts(name: str) -> tuple[str, str | None]:
    """The repository and the revision of a name."""
    found = _NAME.fullmatch(name)
    return (found["repository"], found["revision"]) if found else (name, None)


def pinned(name: str, key: str) -> str:
    """The name with its commit; a folder unchanged. Raises InputError where neither the Hub nor the cache has one."""
    repository, revision = parts(name)
    if os.path.isdir(name) or (revision and _COMMIT.fullmatch(revision)):
        return name
    return f"{repository}@{snapshot(name, TOKENIZER_FILES, key).name}"


def snapshot(name: str, files: Sequence[str], key: str, offline: bool = False, kind: str | None = None) -> Path:
    """The folder in this machine's cache, named by its commit, with these files; downloaded where needed.

    offline: download nothing. kind: "dataset", or None for a model. Raises InputError.
    """
    repository, revision = parts(name)
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(files), local_files_only=offline, repo_type=kind
        )
    except (OSError, ValueError) as error:  # what huggingface_hub raises derives from these
        reason = first_line(error)
        if offline:
            problem = f"found {name!r}, no folder here, and it is not in this machine's cache; expected a folder"
            raise InputError(problem, key=key) from None
        problem = f"found {name!r}, no folder here, and the hub did not give it ({reason})"
        raise InputError(f"{problem}; expected a folder, or a hub that can be reached", key=key) from None
    return Path(found)
