"""Tokenizing by several processes, in shards that outlive them: a shard for each piece of a corpus.

A shard is a file of each stream, of both sides, and a description with their checksums, which is written last. Where a
process is killed, the finished shards are used the next time. Joined in order they are the bytes that one process
makes.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from raystage.data.plan import DataPlan
from raystage.data.token_index import parts_of, stream_names
from raystage.data.token_streams import opened, write_documents
from raystage.data.tokenizers import Tokenizer, make_tokenizer
from raystage.errors import StorageError
from raystage.process_pool import in_processes
from raystage.sources.corpus import Piece

_CHUNK_BYTES = 2**20
# Told after each shard: (documents done, all documents).
Progress = Callable[[int, int], None]

_tokenizers: dict[str, Tokenizer] = {}


def write_shards(
    pieces: Sequence[Piece], data: DataPlan, dtype: np.dtype, folder: Path, workers: int, progress: Progress | None
) -> None:
    """Write the shards that are not there yet. Raises InputError, ProcessFailed."""
    folder.mkdir(exist_ok=True)
    missing = [number for number, piece in enumerate(pieces) if _described(folder, number, piece) is None]
    total = sum(len(piece) for piece in pieces)
    done = total - sum(len(pieces[number]) for number in missing)
    if progress:
        progress(done, total)
    tasks = [(pieces[number], number, data, dtype.name, str(folder)) for number in missing]
    for place, _ in in_processes(f"{__name__}:write_shard", tasks, workers):
        done += len(tasks[place][0])
        if progress:
            progress(done, total)


def write_shard(piece: Piece, number: int, data: DataPlan, dtype: str, folder: str) -> None:
    """Tokenize one piece, in a process that keeps its tokenizer for the next one."""
    if data.content not in _tokenizers:
        _tokenizers[data.content] = make_tokenizer(data)
    own = uuid.uuid4().hex  # on a file system without locks two processes may write one shard
    names = stream_names(parts_of(data))
    work = {name: Path(folder, f"{number:06}.{name}.{own}") for name in names}
    try:
        description = _write(piece, _tokenizers[data.content], np.dtype(dtype), work)
        for name, path in work.items():
            os.replace(path, Path(folder, f"{number:06}.{name}"))
        text = Path(folder, f"{number:06}.json.{own}")
        text.write_text(json.dumps(description))
        os.replace(text, Path(folder, f"{number:06}.json"))
    except OSError as error:
        raise StorageError(f"{folder}: tokens cannot be kept there ({error.strerror}); expected room") from None
    finally:
        for path in work.values():
            path.unlink(missing_ok=True)


def _write(piece: Piece, tokenizer: Tokenizer, dtype: np.dtype, paths: Mapping[str, Path]) -> dict[str, Any]:
    """paths: of the streams by name, in their order."""
    with opened(paths.values()) as streams:
        write_documents([piece], tokenizer, dtype, streams)
        found = {name: stream.written() for name, stream in zip(paths, streams, strict=True)}
    sizes = {name: one.num_bytes for name, one in found.items()}
    checksums = {name: one.checksum for name, one in found.items()}
    return {"piece": piece.identity(), "sizes": sizes, "checksums": checksums}


def _described(folder: Path, number: int, piece: Piece) -> dict[str, Any] | None:
    """The description of a finished shard of this piece; None where there is none, or one of an older version."""
    try:
        found = json.loads((folder / f"{number:06}.json").read_bytes())
        sizes = {name: (folder / f"{number:06}.{name}").stat().st_size for name in found["sizes"]}
        return found if found["piece"] == piece.identity() and found["sizes"] == sizes else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_shards(pieces: Sequence[Piece], folder: Path, name: str) -> Iterator[bytes]:
    """One of the streams, of all shards in order, in chunks. Raises StorageError where a shard is damaged; it is
    removed, so that it is made again."""
    for number, piece in enumerate(pieces):
        found, checksum = _described(folder, number, piece), xxhash.xxh3_128()
        with (folder / f"{number:06}.{name}").open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                checksum.update(chunk)
                yield chunk
        if found is None or checksum.hexdigest() != found["checksums"][name]:
            (folder / f"{number:06}.json").unlink(missing_ok=True)
            raise StorageError(
                f"{folder}: shard {number} was damaged and is removed; expected whole files (start again)"
            )
