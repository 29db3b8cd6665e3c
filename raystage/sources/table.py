"""The sources: where the documents of a stage come from. One entry for each, one file for each entry.

This file is light: a plan imports only the files of the sources that it reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from raystage.sources.corpus import DEFAULTS, Corpus, SourceOptions

_TEXT = frozenset({"text"})
_FILES = frozenset({"path", "files", "validation_path"})


@dataclass(frozen=True)
class DataSource:
    """A source. gives: the fields of its samples, such as {"text"} or {"tokens"}.

    keys: the keys under `data` that it has, besides those that every source has. module: where its function
    `read(paths, options)` is, which returns a `Corpus` and raises InputError.
    """

    name: str
    gives: frozenset[str]
    keys: frozenset[str]
    module: str

    @property
    def has_path(self) -> bool:
        return "path" in self.keys

    def read(self, paths: tuple[str, ...], options: SourceOptions) -> Corpus:
        """Its documents. Raises InputError."""
        function: Callable[[tuple[str, ...], SourceOptions], Corpus] = importlib.import_module(self.module).read
        return function(paths, options)


_ENTRIES = (
    DataSource("python-stdlib", _TEXT, frozenset(), "raystage.sources.python_stdlib"),
    DataSource("text", _TEXT, _FILES | {"document_separator", "document_bytes"}, "raystage.sources.text"),
    DataSource("jsonl", _TEXT, _FILES | {"field"}, "raystage.sources.jsonl"),
    DataSource("parquet", _TEXT, _FILES | {"field"}, "raystage.sources.parquet"),
)
SOURCES: dict[str, DataSource] = {entry.name: entry for entry in _ENTRIES}


def read_corpus(source: str, paths: tuple[str, ...], options: SourceOptions = DEFAULTS) -> Corpus:
    """The documents of a source. Raises InputError where there is nothing to read, or something that is wrong."""
    return SOURCES[source].read(paths, options)


def sources_with(key: str) -> list[str]:
    """The names of the sources that have this key under `data`."""
    return [name for name, source in SOURCES.items() if key in source.keys]
