"""`source: text`: files of plain text. A document is a file, or a part of it where the schedule says so."""

from __future__ import annotations

from raystage.sources.corpus import SourceOptions
from raystage.sources.documents import Document, FileCorpus, find_documents
from raystage.sources.text_files import text_files


def read(paths: tuple[str, ...], options: SourceOptions) -> FileCorpus:
    """The documents below these paths. Raises InputError where there are none, or something that is no text."""
    documents = _documents(paths, options, "data.path")
    if not options.validation_path:
        return FileCorpus(documents)
    return FileCorpus(documents, _documents(options.validation_path, options, "data.validation_path"))


def _documents(paths: tuple[str, ...], options: SourceOptions, key: str) -> tuple[Document, ...]:
    return find_documents(text_files(paths, options.files, key), options, ", ".join(paths), key)
