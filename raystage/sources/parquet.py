"""`source: parquet`: Parquet files. A document is a row of a column: `field: text`, or `field: meta.body`.

Rows whose text is empty are no documents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raystage.errors import InputError
from raystage.sources.chats import conversation
from raystage.sources.corpus import SourceOptions
from raystage.sources.places import Place, refused
from raystage.sources.rows import Block, RowCorpus, read_rows
from raystage.units import shown

ENDINGS = (".parquet", ".pq")
_BATCH_BYTES = 2**21  # of rows that are decoded at a time
_BUFFER_BYTES = 2**20  # without a buffer, Arrow reads the column of a row group at once
_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES_TYPES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


def read(paths: tuple[str, ...], options: SourceOptions) -> RowCorpus:
    """The documents below these paths. Raises InputError: the first row that is wrong, with its number."""
    return read_rows(__name__, ENDINGS, paths, options)


def blocks(place: Place, options: SourceOptions) -> list[Block]:
    """The row groups of a file."""
    with _opened(place) as file:
        column_path(file.schema_arrow, place, options)
        return [Block(group, group + 1) for group in range(file.num_row_groups)]


def rows(place: Place, block: Block, options: SourceOptions) -> Iterator[bytes]:
    """The texts in a row group, empty ones included. Raises InputError."""
    with _opened(place) as file:
        path = column_path(file.schema_arrow, place, options)
        first = sum(file.metadata.row_group(group).num_rows for group in range(block.start))
        groups = range(block.start, block.stop)
        count = _batch_rows(file, block.start)
        for batch in file.iter_batches(count, row_groups=groups, columns=[".".join(path)], use_threads=False):
            yield from texts(batch, path, place, first, options)
            first += len(batch)


def _batch_rows(file: pq.ParquetFile, group: int) -> int:
    found = file.metadata.row_group(group)
    return max(16, min(8192, _BATCH_BYTES * found.num_rows // max(1, found.total_byte_size)))


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[pq.ParquetFile]:
    try:
        with place.open() as stream, pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES) as file:
            yield file
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{place} is no Parquet file, or damaged ({reason}); expected one", key="data.path") from None
    except OSError as error:
        raise refused(place, error) from None


# --- columns of Arrow data ----------------------------------------------------------------------


def column_path(schema: pa.Schema, place: Place, options: SourceOptions) -> tuple[str, ...]:
    """The names that lead to the column of the documents: one, or those of nested fields. Raises InputError where there
    is no such column, or one of another type. A name with dots in it counts before a path."""
    field = options.field or "text"
    path = (field,) if field in schema.names else tuple(field.split("."))
    columns, kind = schema, None
    for step in path:
        names = list(columns.names) if isinstance(columns, pa.Schema) else [one.name for one in columns]
        if step not in names:
            there = ", ".join(map(repr, names)) or "no columns"
            problem = f"{place} has no column {field!r}; found {there}; expected one of its columns"
            raise InputError(problem, key="data.field")
        kind = columns.field(step).type
        columns = kind if pa.types.is_struct(kind) else ()
    if options.are_chats:
        _check_messages(kind, field, place)
    elif not _is_text(kind):
        texts = _text_columns(schema)
        where = f"such as {', '.join(map(repr, texts))}" if texts else "of which it has none"
        problem = f"{place}: the column {field!r} has the type {kind}; expected a column of text, {where}"
        raise InputError(problem, key="data.field")
    return path


def _check_messages(kind: pa.DataType, field: str, place: Place) -> None:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(kind) for check in lists) or not pa.types.is_struct(kind.value_type):
        problem = f"{place}: the column {field!r} has the type {kind}"
        raise InputError(f"{problem}; expected a column of lists of messages (role, content)", key="data.field")


def texts(
    batch: pa.RecordBatch, path: tuple[str, ...], place: Place, first: int, options: SourceOptions
) -> Iterator[bytes]:
    """The texts of a column, or its conversations, empty ones included. first: the number of rows before. Raises
    InputError."""
    column = batch.column(batch.schema.get_field_index(path[0]))
    for step in path[1:]:
        column = pc.struct_field(column, step)
    if options.are_chats:
        yield from _conversations(column, path, place, first)
        return
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
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


def _conversations(column: pa.Array, path: tuple[str, ...], place: Place, first: int) -> Iterator[bytes]:
    for number, value in enumerate(column, first + 1):
        try:
            yield conversation(value.as_py(), ".".join(path)).encode()
        except UnicodeDecodeError:
            found = f"{place}, row {number:,}: found bytes that are no UTF-8 in a message"
            raise InputError(f"{found}; expected UTF-8", key="data.path") from None
        except ValueError as error:
            raise InputError(f"{place}, row {number:,}: {error}", key="data.path") from None


def _no_utf8(place: Place, row: int, path: tuple[str, ...], error: UnicodeDecodeError, is_bytes: bool) -> InputError:
    byte = f"0x{error.object[error.start]:02x} at position {error.start}"
    what = "bytes that are no text" if is_bytes else "text that is no UTF-8"
    problem = f"{place}, row {row:,}: found {what} ({byte}) in the column {'.'.join(path)!r}"
    return InputError(f"{problem}; expected UTF-8, or data.encoding_errors: replace", key="data.path")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(check(kind) for check in (*_TEXT_TYPES, *_BYTES_TYPES))


def _text_columns(schema: pa.Schema) -> list[str]:
    return [shown(field.name).strip("'") for field in schema if _is_text(field.type)]
