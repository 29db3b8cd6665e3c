"""The streams of tokens that a machine keeps of a text: made once, and checked at every open.

A stream with another length than it was written with is made again, and so is one with another checksum. Streams of up
to `SMALL_BYTES` are read for their checksum at every open, which takes at most a tenth of a second. Longer ones are
read only where their time stamp has changed. So every change through the file system is found, but a bit that the disk
itself changed is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from raystage.data.plan import DataPlan
from raystage.data.repeats import Repeats, find_repeats
from raystage.data.token_index import (
    HELD_OUT,
    INDEX,
    TRAIN,
    StreamFile,
    TokenIndex,
    parts_of,
    read_index,
    stream_file,
    stream_names,
)
from raystage.data.token_shards import Progress, read_shards, write_shards
from raystage.data.token_streams import opened, write_documents
from raystage.data.tokenizer_names import tokenizer_fingerprint
from raystage.data.tokenizers import LABEL, Tokenizer, make_tokenizer
from raystage.errors import InputError, StorageError
from raystage.process_pool import num_cpus
from raystage.sources.corpus import Corpus, Piece
from raystage.sources.table import read_corpus

SMALL_BYTES = 2**28
PARALLEL_BYTES = 2**26  # of text; starting processes takes seconds
_CHUNK_BYTES = 2**20


def open_index(
    data: DataPlan, folder: Path, workers: int | None = None, progress: Progress | None = None
) -> TokenIndex:
    """The index of the complete streams in `folder`. If needed they are made, by one of the processes that ask.

    workers: how many processes it starts for that; as many as there are cores unless given, for long texts.

    Raises InputError where the text here is not the one that was planned with, StorageError where nothing can be
    written.
    """
    found = _whole_index(folder)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return _whole_index(folder) or _make(data, folder, Making(Path(f"{folder}.shards"), workers, progress))
    except OSError as error:
        found = f"{folder.parent}: the tokens of the text cannot be kept there ({error.strerror})"
        raise StorageError(f"{found}; expected room, or another folder in XDG_CACHE_HOME") from None


def _whole_index(folder: Path) -> TokenIndex | None:
    index = read_index(folder)
    whole = index and all(_is_whole(folder / name, written) for name, written in index.files.items())
    return index if whole else None


def _is_whole(path: Path, written: StreamFile) -> bool:
    try:
        status = path.stat()
        if status.st_size != written.num_bytes:
            return False
        if status.st_size > SMALL_BYTES and status.st_mtime_ns == written.modified_ns:
            return True
        return _checksum(path) == written.checksum
    except OSError:
        return False


def _checksum(path: Path) -> str:
    checksum = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum.update(chunk)
    return checksum.hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock while these streams are made. A process that was killed does not block others.

    On a file system without locks several processes may make them, each in its own folder, and the first one's stay.
    """
    with Path(f"{folder}.lock").open("a") as file:  # if it is a link, what it leads to stays as it is
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            for left in folder.parent.glob(f"{folder.name}.part-*"):  # left by processes that were killed
                shutil.rmtree(left, ignore_errors=True)
        yield


@dataclass(frozen=True)
class Making:
    """How streams are made. workers: processes; None: as many as there are cores, for texts that are worth it.

    shards: the folder in which finished parts are kept until all are done.
    """

    shards: Path
    workers: int | None = None
    progress: Progress | None = None

    def workers_for(self, data: DataPlan) -> int:
        if self.workers is not None:
            return self.workers
        return num_cpus() if _is_long(data) else 1

    def has_shards(self, data: DataPlan) -> bool:
        """Whether it takes so long that a process which is killed should not have to begin again."""
        return self.workers_for(data) > 1 or _is_long(data)


def _is_long(data: DataPlan) -> bool:
    return data.train.num_bytes + data.held_out.num_bytes >= PARALLEL_BYTES


def _make(data: DataPlan, folder: Path, making: Making) -> TokenIndex:
    """Write both streams beside `folder` and move them there together, so that nobody sees an incomplete cache."""
    corpus = _planned_corpus(data)
    tokenizer = _planned_tokenizer(data)
    work = Path(f"{folder}.part-{uuid.uuid4().hex}")
    work.mkdir()
    try:
        index = _write(corpus, data, tokenizer, work, making)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(work / "before")  # it is damaged, or of an older version
        with contextlib.suppress(OSError):  # without locks another worker may have been first, with the same streams
            work.rename(folder)
        _remove(folder / "before")
        shutil.rmtree(making.shards, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return index


def _remove(path: Path) -> None:
    """A folder, or what stood in its place: a file, or a link, but not what that leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _planned_tokenizer(data: DataPlan) -> Tokenizer:
    found = tokenizer_fingerprint(data.tokenizer)
    if found != data.tokenizer_fingerprint:
        problem = f"found other files in {data.tokenizer!r} than were planned with; expected the same everywhere"
        raise InputError(problem, key="data.tokenizer")
    return make_tokenizer(data)


def _planned_corpus(data: DataPlan) -> Corpus:
    corpus = read_corpus(data.source, data.path, data.options)
    if corpus.fingerprint != data.fingerprint:
        raise InputError(
            f"the text on this machine ({corpus.fingerprint[:12]}) is not the one that was planned with "
            f"({data.fingerprint[:12]}); expected the same files (for python-stdlib: the same Python) everywhere",
            key="data",
        )
    return corpus


def _write(corpus: Corpus, data: DataPlan, tokenizer: Tokenizer, work: Path, making: Making) -> TokenIndex:
    dtype = _dtype(data, tokenizer)
    pieces = corpus.pieces(data.validation_fraction)
    names = stream_names(parts_of(data))
    if making.has_shards(data) and len(pieces) > 1:
        shards = making.shards
        write_shards(pieces, data, dtype, shards, making.workers_for(data), making.progress)
        files = _join_shards(pieces, shards, work, names)
    else:
        files = _write_streams(pieces, tokenizer, dtype, work, names)
    streams = [np.memmap(work / name, dtype=dtype, mode="r") for name in (TRAIN, HELD_OUT)]
    # Equal samples are never on both sides, and pieces of neighbours mean nothing.
    repeats = find_repeats(*streams) if data.samples is None else Repeats(0, 0, 1.0)
    index = TokenIndex(
        dtype=dtype.name,
        tokenizer_size=tokenizer.size,
        train=files["train"],
        held_out=files["held_out"],
        train_tokens=len(streams[0]),
        held_out_tokens=len(streams[1]),
        pieces=repeats.pieces,
        repeated=repeats.repeated,
        looked_at=repeats.looked_at,
        train_samples=data.samples and files["train_labels"].num_bytes // LABEL.itemsize,
        held_out_samples=data.samples and files["held_out_labels"].num_bytes // LABEL.itemsize,
        further={name: files[name] for name in names[2:]},
    )
    (work / INDEX).write_bytes(index.to_bytes())
    return index


def _dtype(data: DataPlan, tokenizer: Tokenizer) -> np.dtype:
    if data.samples is not None and data.samples.image:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)


def _write_streams(
    pieces: Iterable[Piece], tokenizer: Tokenizer, dtype: np.dtype, work: Path, names: Sequence[str]
) -> dict[str, StreamFile]:
    """The streams by name, made by this process."""
    with opened(work / stream_file(name) for name in names) as streams:
        write_documents(pieces, tokenizer, dtype, streams)
        return {name: stream.written() for name, stream in zip(names, streams, strict=True)}


def _join_shards(pieces: Sequence[Piece], shards: Path, work: Path, names: Sequence[str]) -> dict[str, StreamFile]:
    """The same streams, joined of the shards that several processes made."""
    with opened(work / stream_file(name) for name in names) as streams:
        for stream, name in zip(streams, names, strict=True):
            for chunk in read_shards(pieces, shards, name):
                stream.write(chunk)
        return {name: stream.written() for name, stream in zip(names, streams, strict=True)}
