"""`source: parquet`: Parquet files. A document is a row of a column: `field: text`, or `field: meta.body`.

Rows whose text is empty are no documents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from raystage.errors import InputError
from raystage.sources.corpus import Sample, SourceOptions
from raystage.sources.labelled.columns import documents, find_columns
from raystage.sources.places import Place, refused
from raystage.sources.row_index import Block
from raystage.sources.rows import RowCorpus, read_rows
from raystage.units import first_line

ENDINGS = (".parquet", ".pq")
_BATCH_BYTES = 2**21  # of rows that are decoded at a time
_BUFFER_BYTES = 2**20  # without a buffer, Arrow reads the column of a row group at once


def read(paths: tuple[str, ...], options: SourceOptions) -> RowCorpus:
    """The documents below these paths. Raises InputError: the first row that is wrong, with its number."""
    return read_rows(__name__, ENDINGS, paths, options)


def blocks(place: Place, options: SourceOptions) -> list[Block]:
    """The row groups of a file."""
    with _opened(place) as file:
        find_columns(file.schema_arrow, place, options)
        return [Block(group, group + 1) for group in range(file.num_row_groups)]


def class_names(place: Place, options: SourceOptions) -> tuple[str, ...]:
    """The names of the classes, where the file says them. Raises InputError."""
    with _opened(place) as file:
        return find_columns(file.schema_arrow, place, options).names


def rows(place: Place, block: Block, options: SourceOptions) -> Iterator[bytes | Sample]:
    """The documents in a row group, empty ones included. Raises InputError."""
    with _opened(place) as file:
        columns = find_columns(file.schema_arrow, place, options)
        first = sum(file.metadata.row_group(group).num_rows for group in range(block.start))
        groups = range(block.start, block.stop)
        count = _batch_rows(file, block.start)
        for batch in file.iter_batches(count, row_groups=groups, columns=columns.wanted, use_threads=False):
            yield from documents(batch, columns, place, first, options)
            first += len(batch)


def _batch_rows(file: pq.ParquetFile, group: int) -> int:
    found = file.metadata.row_group(group)
    return max(1, min(8192, _BATCH_BYTES * found.num_rows // max(1, found.total_byte_size)))


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[pq.ParquetFile]:
    try:
        with place.open() as stream, pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES) as file:
            yield file
    except pa.ArrowInvalid as error:
        reason = first_line(error)
        raise InputError(f"{place} is no Parquet file, or damaged ({reason}); expected one", key="data.path") from None
    except OSError as error:
        raise refused(place, error) from None
