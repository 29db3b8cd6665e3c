"""`source: parquet`: Parquet files. A document is a row of a column: `field: text`, or `field: meta.body`.

Rows whose text is empty are no documents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from raystage.errors import InputError
from raystage.sources.columns import column_path, texts
from raystage.sources.corpus import SourceOptions
from raystage.sources.places import Place, refused
from raystage.sources.rows import Block, RowCorpus, read_rows

ENDINGS = (".parquet", ".pq")
_BATCH_ROWS = 1024


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
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[".".join(path)], use_threads=False):
            yield from texts(batch, path, place, first, options.may_be_any)
            first += len(batch)


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[pq.ParquetFile]:
    try:
        with place.open() as stream, pq.ParquetFile(stream) as file:
            yield file
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{place} is no Parquet file, or damaged ({reason}); expected one", key="data.path") from None
    except OSError as error:
        raise refused(place, error) from None
