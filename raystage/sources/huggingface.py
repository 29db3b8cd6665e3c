"""`source: huggingface`: data sets as Hugging Face's library `datasets` saves them, or from the Hub.

A saved folder is what `save_to_disk` wrote: Arrow files. Of a Hub name the Parquet or JSON-lines files are read, with
its commit pinned when a schedule is planned; where a repository has none, those that the Hub itself converted. The
library is not needed for that, and no script of a data set is run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from raystage.errors import InputError
from raystage.files.reading import LocalFiles, read_json
from raystage.models import hub
from raystage.sources import jsonl, parquet
from raystage.sources.corpus import PIECE_BYTES, Sample, SourceOptions, cut
from raystage.sources.hub_files import commit_of, download
from raystage.sources.labelled.columns import documents, find_columns
from raystage.sources.places import Place, is_remote, place_of, refused
from raystage.sources.row_index import Block, FileIndex, index_files
from raystage.sources.rows import RowCorpus
from raystage.units import first_line

_KEY = "data.path"


def pinned(path: str, options: SourceOptions) -> str:
    """A Hub name with its commit; a folder unchanged. Raises InputError."""
    if os.path.isdir(path):
        return path
    if is_remote(path) or not hub.is_name(path):
        problem = f"found {path!r}, no folder here; expected a folder that save_to_disk wrote, or a Hub name: org/data"
        raise InputError(problem, key=_KEY)
    return commit_of(path, options.subset, options.split or "train")


def read(paths: tuple[str, ...], options: SourceOptions) -> RowCorpus:
    """The documents of data sets. Raises InputError: what is not there, or the first row that is wrong."""
    format, files = _indexed(paths, options, options.split, _KEY)
    if not options.validation_path:
        return RowCorpus(format, options, files)
    held_format, held_out = _indexed(
        options.validation_path, options, options.validation_split or options.split, "data.validation_path"
    )
    if held_format != format:
        problem = "found files of another kind than those of data.path; expected data sets that were saved in one way"
        raise InputError(problem, key="data.validation_path")
    return RowCorpus(format, options, files, held_out)


def _indexed(
    paths: tuple[str, ...], options: SourceOptions, split: str | None, key: str
) -> tuple[str, tuple[FileIndex, ...]]:
    """The format of the files, and their indexes."""
    found: list[tuple[str, Place]] = []
    for path in paths:
        found += _saved(Path(path), split, key) if os.path.isdir(path) else _from_hub(path, options.subset, split, key)
    formats = sorted({format for format, _ in found})
    if len(formats) > 1:
        raise InputError("found data sets that were saved in different ways; expected one way for all", key=key)
    return formats[0], index_files(formats[0], [place for _, place in found], options, ", ".join(paths), key)


def _saved(folder: Path, split: str | None, key: str) -> list[tuple[str, Place]]:
    """The Arrow files of a saved data set, or of one split of several."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(LocalFiles(folder), "dataset_dict.json", key).get("splits")
        names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        wanted = split or "train"
        if wanted not in names:
            there = ", ".join(map(repr, names)) or "none"
            problem = f"found no split {wanted!r} in {str(folder)!r}; there are {there}; expected one of them"
            raise InputError(problem, key="data.split")
        folder = folder / wanted
    if not (folder / "state.json").is_file():
        problem = f"{str(folder)!r} is no saved data set (it has no state.json); expected what save_to_disk wrote"
        raise InputError(problem, key=key)
    state = read_json(LocalFiles(folder), "state.json", key)
    if split and state.get("_split") not in (None, split):
        problem = f"found {split!r}, but {str(folder)!r} holds the split {state['_split']!r}; expected that, or none"
        raise InputError(problem, key="data.split")
    if state.get("_indices_files"):
        problem = f"{str(folder)!r} is a selection of rows; expected flatten_indices() before save_to_disk"
        raise InputError(problem, key=key)
    listed = state.get("_data_files")
    names = [one.get("filename") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if not names or not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
        problem = "found no list of Arrow files in state.json; expected what save_to_disk wrote"
        raise InputError(problem, key=key, file=str(folder))
    return [(__name__, place_of(folder / name, key)) for name in names]


def _from_hub(name: str, subset: str | None, split: str | None, key: str) -> list[tuple[str, Place]]:
    files = download(name, subset, split or "train", key)
    return [
        ((parquet if file.name.endswith(parquet.ENDINGS) else jsonl).__name__, place_of(file, key)) for file in files
    ]


# --- Arrow files --------------------------------------------------------------------------------


def blocks(place: Place, options: SourceOptions) -> list[Block]:
    """Ranges of batches, of about as many bytes as a piece."""
    with _opened(place) as stream:
        find_columns(stream.schema, place, options)
        return [Block(*range_) for range_ in cut((max(1, batch.nbytes) for batch in stream), PIECE_BYTES)]


def class_names(place: Place, options: SourceOptions) -> tuple[str, ...]:
    """The names of the classes, where the file says them. Raises InputError."""
    with _opened(place) as stream:
        return find_columns(stream.schema, place, options).names


def rows(place: Place, block: Block, options: SourceOptions) -> Iterator[bytes | Sample]:
    """The documents in a range of batches, empty ones included. Raises InputError."""
    with _opened(place) as stream:
        columns, first = find_columns(stream.schema, place, options), 0
        for number, batch in enumerate(stream):
            if number >= block.stop:
                return
            if number >= block.start:
                yield from documents(batch, columns, place, first, options)
            first += len(batch)


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[pa.RecordBatchStreamReader]:
    """The file is mapped, so that batches which are skipped are not read."""
    try:
        with pa.memory_map(place.uri) as file, pa.ipc.open_stream(file) as stream:
            yield stream
    except pa.ArrowInvalid as error:
        reason = first_line(error)
        problem = f"{place} is no stream of Arrow data, or damaged ({reason}); expected what save_to_disk wrote"
        raise InputError(problem, key="data.path") from None
    except OSError as error:
        raise refused(place, error) from None
