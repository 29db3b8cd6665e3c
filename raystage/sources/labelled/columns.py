"""Columns of Arrow data: which of them hold the documents, their images and their labels, and what a row has there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raystage.errors import InputError
from raystage.sources.chats import conversation
from raystage.sources.corpus import SCORE_KEY, Label, Sample, Scored, SourceOptions
from raystage.sources.labelled.classes import label_of, named, score_of
from raystage.sources.labelled.decoding import decoded
from raystage.sources.places import Place
from raystage.units import shown

_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES_TYPES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_LABEL_TYPES = (*_TEXT_TYPES, pa.types.is_integer, pa.types.is_boolean)
_LABEL_ROWS = 256  # whose images are held at a time

Path = tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """The names that lead to a column: one, or those of nested fields. content: of the documents. label: of their
    classes, where those are asked for; names: those of the classes, where the schema has them. score: of numbers beside
    the documents.
    """

    content: Path
    label: Path | None = None
    names: tuple[str, ...] = ()
    score: Path | None = None

    @property
    def wanted(self) -> list[str]:
        """For a reader of Parquet files."""
        return [".".join(path) for path in (self.content, self.label, self.score) if path]


def find_columns(schema: pa.Schema, place: Place, options: SourceOptions) -> Columns:
    """Raises InputError where there is no such column, or one of another type."""
    content = _image_column(schema, place, options) if options.image else _text_column(schema, place, options)
    if options.score is not None:
        return Columns(content, score=_found(schema, options.score, place, SCORE_KEY)[0])
    if options.label is None:
        return Columns(content)
    label, kind = _found(schema, options.label, place, "data.label")
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(check(kind) for check in _LABEL_TYPES):
        problem = f"{place}: the column {options.label!r} has the type {kind}"
        raise InputError(f"{problem}; expected a column of whole numbers or of text", key="data.label")
    return Columns(content, label, _declared(schema, options.label))


def documents(
    batch: pa.RecordBatch, columns: Columns, place: Place, first: int, options: SourceOptions
) -> Iterator[bytes | Sample]:
    """The documents in some rows, empty ones included. first: the number of rows before. Raises InputError."""
    if options.score is not None:
        yield from _scored(batch, columns, place, first, options)
        return
    if not options.are_samples:
        yield from _texts(batch, columns.content, place, first, options)
        return
    for start in range(0, len(batch), _LABEL_ROWS):
        part = batch.slice(start, _LABEL_ROWS)
        yield from _samples(part, columns, place, first + start, options)


def _scored(
    batch: pa.RecordBatch, columns: Columns, place: Place, first: int, options: SourceOptions
) -> Iterator[bytes | Scored]:
    contents, scores = _texts(batch, columns.content, place, first, options), _column(batch, columns.score).to_pylist()
    for number, (content, score) in enumerate(zip(contents, scores, strict=True), first + 1):
        try:
            yield Scored(content, score_of(score)) if content else content
        except ValueError as error:
            where = f"{place}, row {number:,}: {error}, in the column {'.'.join(columns.score)!r}"
            raise InputError(where, key=SCORE_KEY) from None


def _samples(
    batch: pa.RecordBatch, columns: Columns, place: Place, first: int, options: SourceOptions
) -> Iterator[bytes | Sample]:
    read = _images if options.image else _texts
    contents = read(batch, columns.content, place, first, options)
    for number, (content, label) in enumerate(zip(contents, _labels(batch, columns), strict=True), first + 1):
        name = f"{place}, row {number:,}"
        if isinstance(content, bytes) and not content:
            yield content
        else:
            yield Sample(content, _read_label(label, columns, name, options) if columns.label else None, name)


def _labels(batch: pa.RecordBatch, columns: Columns) -> list[Any]:
    return _column(batch, columns.label).to_pylist() if columns.label else [None] * len(batch)


def _read_label(value: Any, columns: Columns, name: str, options: SourceOptions) -> Label:
    try:
        return label_of(value, options.classes, columns.names)
    except ValueError as error:
        where = ".".join(columns.label)
        raise InputError(f"{name}: {error}, in the column {where!r}", key="data.label") from None


# --- which column -------------------------------------------------------------------------------


def _found(schema: pa.Schema, field: str, place: Place, key: str, hint: str = "") -> tuple[Path, pa.DataType]:
    """A column and its type. A name with dots in it counts before a path. hint: of what else to do, for messages."""
    path = (field,) if field in schema.names else tuple(field.split("."))
    columns, kind = schema, None
    for step in path:
        names = list(columns.names) if isinstance(columns, pa.Schema) else [one.name for one in columns]
        if step not in names:
            there = named(names) or "no columns"
            problem = f"{place} has no column {field!r}; found {there}; expected one of its columns"
            raise InputError(f"{problem}{hint}", key=key)
        if names.count(step) > 1:
            problem = f"{place} has {names.count(step)} columns {field!r}; expected names that differ"
            raise InputError(problem, key=key)
        kind = columns.field(step).type
        columns = kind if pa.types.is_struct(kind) else ()
    return path, kind


def _text_column(schema: pa.Schema, place: Place, options: SourceOptions) -> Path:
    field = options.field or "text"
    hint = ", or data.image: the column with images" if options.are_samples else ""
    path, kind = _found(schema, field, place, "data.field", hint)
    if options.are_chats:
        _check_messages(kind, field, place)
    elif not _is_text(kind):
        texts = _text_columns(schema)
        where = f"such as {', '.join(map(repr, texts))}" if texts else "of which it has none"
        problem = f"{place}: the column {field!r} has the type {kind}; expected a column of text, {where}"
        raise InputError(problem, key="data.field")
    return path


def _image_column(schema: pa.Schema, place: Place, options: SourceOptions) -> Path:
    path, kind = _found(schema, options.image, place, "data.image")
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        path, kind = (*path, "bytes"), kind.field("bytes").type
    if not any(check(kind) for check in _BYTES_TYPES):
        problem = f"{place}: the column {options.image!r} has the type {kind}"
        raise InputError(f"{problem}; expected the bytes of image files", key="data.image")
    return path


def _declared(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The names of classes that the library `datasets` wrote into a schema; () where there are none."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = content["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list and len(set(names)) == len(names) else ()


def _check_messages(kind: pa.DataType, field: str, place: Place) -> None:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(kind) for check in lists) or not pa.types.is_struct(kind.value_type):
        problem = f"{place}: the column {field!r} has the type {kind}"
        raise InputError(f"{problem}; expected a column of lists of messages (role, content)", key="data.field")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(check(kind) for check in (*_TEXT_TYPES, *_BYTES_TYPES))


def _text_columns(schema: pa.Schema) -> list[str]:
    return [shown(field.name).strip("'") for field in schema if _is_text(field.type)]


# --- what a row has there -----------------------------------------------------------------------


def _column(batch: pa.RecordBatch, path: Path) -> pa.Array:
    column = batch.column(batch.schema.get_field_index(path[0]))
    for step in path[1:]:
        column = pc.struct_field(column, step)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _texts(batch: pa.RecordBatch, path: Path, place: Place, first: int, options: SourceOptions) -> Iterator[bytes]:
    """The texts of a column, or its conversations, empty ones included."""
    column = _column(batch, path)
    if options.are_chats:
        yield from _conversations(column, path, place, first)
        return
    is_bytes = any(check(column.type) for check in _BYTES_TYPES)
    for number, content in enumerate(column.cast(pa.large_binary()).to_pylist(), first + 1):
        if content is None:
            problem = f"{place}, row {number:,}: found null in the column {'.'.join(path)!r}; expected text"
            raise InputError(problem, key="data.field")
        try:
            content.decode()
        except UnicodeDecodeError as error:
            if not options.may_be_any:
                raise _no_utf8(place, number, path, error, is_bytes) from None
            content = content.decode("utf-8", "replace").encode()
        yield content


def _images(batch: pa.RecordBatch, path: Path, place: Place, first: int, options: SourceOptions) -> Iterator[Any]:
    for number, content in enumerate(_column(batch, path), first + 1):
        name = f"{place}, row {number:,}"
        if not content.is_valid:
            problem = f"{name}: found no bytes of an image in the column {options.image!r}"
            raise InputError(f"{problem}; expected the image itself, not a path to it", key="data.image")
        yield decoded(content.as_py(), name, options, "data.image")


def _conversations(column: pa.Array, path: Path, place: Place, first: int) -> Iterator[bytes]:
    for number, value in enumerate(column, first + 1):
        try:
            yield conversation(value.as_py(), ".".join(path)).encode()
        except UnicodeDecodeError:
            found = f"{place}, row {number:,}: found bytes that are no UTF-8 in a message"
            raise InputError(f"{found}; expected UTF-8", key="data.path") from None
        except ValueError as error:
            raise InputError(f"{place}, row {number:,}: {error}", key="data.path") from None


def _no_utf8(place: Place, row: int, path: Path, error: UnicodeDecodeError, is_bytes: bool) -> InputError:
    byte = f"0x{error.object[error.start]:02x} at position {error.start}"
    what = "bytes that are no text" if is_bytes else "text that is no UTF-8"
    problem = f"{place}, row {row:,}: found {what} ({byte}) in the column {'.'.join(path)!r}"
    return InputError(f"{problem}; expected UTF-8, or data.encoding_errors: replace", key="data.path")
