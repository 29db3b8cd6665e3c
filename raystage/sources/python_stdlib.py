"""`source: python-stdlib`: the source code of the running Python's standard library. There is nothing to download."""

from __future__ import annotations

import os
import sysconfig
from functools import partial
from pathlib import Path

from raystage.sources.corpus import SourceOptions
from raystage.sources.documents import FileCorpus, find_documents
from raystage.sources.text_files import refuse_folder

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def read(paths: tuple[str, ...], options: SourceOptions) -> FileCorpus:
    """Every file is a document, and the files of a package are held out together. It reads no path."""
    any_bytes = SourceOptions(may_be_any=True)
    library = _library()
    return FileCorpus(
        find_documents(stdlib_files(), any_bytes, "Python's library", package_of=partial(_package, library))
    )


def stdlib_files() -> list[Path]:
    """The source files of the running Python's standard library, without its tests."""
    found = []
    for root, folders, names in os.walk(_library(), onerror=refuse_folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if name.endswith(".py") and not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _library() -> Path:
    """Asked for once per corpus: Python works it out anew every time, which takes longer than to hash a file."""
    return Path(sysconfig.get_path("stdlib"))


def _package(library: Path, file: Path) -> str:
    """The top-level package or module of the library that a file belongs to: json for json/decoder.py."""
    return file.relative_to(library).parts[0].removesuffix(".py")
