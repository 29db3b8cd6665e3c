"""The sources: where the documents of a stage come from. One entry for each, one file for each entry.

This file is light: a plan imports only the files of the sources that it reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from raystage.sources.corpus import DEFAULTS, Corpus, SourceOptions

# Of `source: tokens`; `raystage.sources.token_files` says what they are.
TOKEN_FORMATS = ("llmc", "megatron", "datatrove", "npy", "uint16", "uint32")
_TEXT = frozenset({"text"})
_ROWS = frozenset({"text", "chats"})
_FILES = frozenset({"path", "files", "validation_path"})
_DATASET = frozenset({"path", "validation_path", "field", "subset", "split", "validation_split"})


@dataclass(frozen=True)
class DataSource:
    """A source. gives: what its documents can be: "text", "tokens", or "chats", which are conversations.

    keys: the keys under `data` that it has, besides those that every source has. module: where its function
    `read(paths, options)` is, which returns a `Corpus` and raises InputError; `pinned(path, options)` may
    be there, too.
    """

    name: str
    gives: frozenset[str]
    keys: frozenset[str]
    module: str

    @property
    def has_path(self) -> bool:
        return "path" in self.keys

    def pinned(self, path: str, options: SourceOptions) -> str:
        """A path that means the same from now on everywhere; for most sources the path itself. Raises InputError."""
        pin = getattr(importlib.import_module(self.module), "pinned", None)
        return pin(path, options) if pin else path

    def read(self, paths: tuple[str, ...], options: SourceOptions) -> Corpus:
        """Its documents. Raises InputError."""
        function: Callable[[tuple[str, ...], SourceOptions], Corpus] = importlib.import_module(self.module).read
        return function(paths, options)


_ENTRIES = (
    DataSource("python-stdlib", _TEXT, frozenset(), "raystage.sources.python_stdlib"),
    DataSource("text", _TEXT, _FILES | {"document_separator", "document_bytes"}, "raystage.sources.text"),
    DataSource("jsonl", _ROWS, _FILES | {"field"}, "raystage.sources.jsonl"),
    DataSource("parquet", _ROWS, _FILES | {"field"}, "raystage.sources.parquet"),
    DataSource("huggingface", _ROWS, _DATASET, "raystage.sources.huggingface"),
    DataSource("tokens", frozenset({"tokens"}), _FILES | {"format"}, "raystage.sources.tokens"),
)
SOURCES: dict[str, DataSource] = {entry.name: entry for entry in _ENTRIES}


def read_corpus(source: str, paths: tuple[str, ...], options: SourceOptions = DEFAULTS) -> Corpus:
    """The documents of a source. Raises InputError where there is nothing to read, or something that is wrong."""
    return SOURCES[source].read(paths, options)


def sources_with(key: str) -> list[str]:
    """The names of the sources that have this key under `data`."""
    return [name for name, source in SOURCES.items() if key in source.keys]
