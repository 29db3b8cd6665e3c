"""All bytes of a checkpoint's shards, compared with the checksums in its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder, OpenFile
from raystage.files.safetensors import CHUNK_BYTES
from raystage.storage.checkpoint import MANIFEST, Checkpoint, read_manifest
from raystage.storage.shards.contents import Shard, StoredFragment
from raystage.storage.shards.writing import header_of


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file of a checkpoint, with the state and the parameter where they are known."""

    file: str
    problem: str
    parameter: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class Examination:
    """bytes_read: of the shards."""

    damages: tuple[Damage, ...]
    bytes_read: int


def examine(folder: Folder) -> Examination:
    """Read all shards of the checkpoint in `folder`, 4 MiB at a time. Raises StorageError, never CheckpointError."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return Examination((Damage(MANIFEST, str(error).removeprefix(f"{(folder / MANIFEST).uri}: ")),), 0)
    opened = Checkpoint(folder.unmapped, manifest)
    damages: list[Damage] = []
    bytes_read = 0
    for number, shard in enumerate(manifest.shards):
        size = folder.size_of(shard.file)
        if size != shard.size_bytes:
            found = "no such file" if size is None else f"found {size} bytes"
            damages.append(Damage(shard.file, f"{found}; expected {shard.size_bytes}"))
            continue
        try:
            fragments = opened.fragments(number)
        except CheckpointError as error:
            damages.append(Damage(shard.file, str(error).partition("damaged; ")[2]))
            continue
        with folder.unmapped.open_reader(shard.file) as file:
            damages += _damages(shard, fragments, file)
        bytes_read += size
    opened.close()
    return Examination(tuple(damages), bytes_read)


def _damages(shard: Shard, fragments: Sequence[StoredFragment], file: OpenFile) -> Iterator[Damage]:
    """The damages of a shard of the right size. Its file is read once, for its checksum and its fragments'."""
    spans = ((one.parameter, one.state, one.start, one.stop) for one in fragments)
    header = header_of(spans, has_index=bool(shard.index_checksum))
    found = file.read_at(len(header), 0)
    whole, clean = xxhash.xxh3_128(found), True
    if found != header:
        clean = False
        yield Damage(shard.file, "its header is not what was written")
    end = len(header)
    for fragment in fragments:
        checksum = xxhash.xxh3_128()
        end = fragment.offset + fragment.num_bytes
        for start in range(fragment.offset, end, CHUNK_BYTES):
            part = file.read_at(min(CHUNK_BYTES, end - start), start)
            whole.update(part)
            checksum.update(part)
        if checksum.hexdigest() != fragment.checksum:
            clean = False
            yield Damage(shard.file, "does not match its checksum", fragment.parameter, fragment.state)
    whole.update(file.read_at(shard.size_bytes - end, end))  # the index
    if clean and f"xxh3_128:{whole.hexdigest()}" != shard.checksum:
        yield Damage(shard.file, "the whole file does not match its checksum")
