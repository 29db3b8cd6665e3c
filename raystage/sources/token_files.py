"""Files of tokens: which format a file has, where its tokens begin, of which type they are, and where documents end.

| format | file | source |
|---|---|---|
| llmc | 256 numbers of 32 bits (magic number, version, number of tokens), then the tokens | karpathy/llm.c, dev/data |
| megatron | .bin: tokens; .idx: their type, and where sequences and documents begin | NVIDIA/Megatron-LM |
| datatrove | .ds: tokens; .ds.index: the end of each document, 64 bits each | huggingface/datatrove, pipeline/tokens |
| npy | NumPy's own format | numpy.lib.format |
| uint16, uint32 | tokens alone: nanoGPT's .bin, OLMo's .npy | karpathy/nanoGPT, allenai/OLMo |
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import numpy as np

from raystage.errors import InputError
from raystage.sources.places import Place, beside, refused
from raystage.sources.table import TOKEN_FORMATS

_HEADER_BYTES = 1024
# Of llm.c, by the magic number: (version, type).
_LLMC = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_NUMPY = b"\x93NUMPY"


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A file of tokens. start: its first byte with tokens. ends: where documents end, in tokens, or None: int64."""

    format: str
    dtype: np.dtype
    start: int
    num_tokens: int
    ends: np.ndarray | None = None


def open_tokens(place: Place, format: str | None) -> TokenFile:
    """What a file is: as `format` says, else as recognised. Raises InputError where it is something else."""
    try:
        head = _head(place)
        found = format or _recognised(place, head)
        match found:
            case "llmc":
                return _llmc(place, head)
            case "megatron":
                return _megatron(place)
            case "datatrove":
                return _datatrove(place)
            case "npy":
                return _npy(place, head)
        return _plain(place, found, head, is_given=format is not None)
    except OSError as error:
        raise refused(place, error) from None


def _recognised(place: Place, head: bytes) -> str:
    if head.startswith(_NUMPY):
        return "npy"
    if place.name.endswith(".ds"):
        return "datatrove"
    if len(head) >= 8 and int.from_bytes(head[:4], "little") in _LLMC:
        return "llmc"
    return "megatron" if place.name.endswith(".bin") and beside(place, _idx(place)) else "uint16"


def _head(place: Place) -> bytes:
    with place.open() as file:
        return file.read(max(_HEADER_BYTES, 2**14))


def _llmc(place: Place, head: bytes) -> TokenFile:
    magic, version, count = (int.from_bytes(head[at : at + 4], "little") for at in (0, 4, 8))
    if magic not in _LLMC or len(head) < _HEADER_BYTES:
        raise _wrong(place, "llmc", f"begins with the number {magic}", f"the magic number {next(iter(_LLMC))}")
    if version != _LLMC[magic][0]:
        raise _wrong(place, "llmc", f"has the version {version}", f"version {_LLMC[magic][0]}")
    dtype = np.dtype(_LLMC[magic][1])
    found = (place.num_bytes - _HEADER_BYTES) / dtype.itemsize
    if found != count:
        raise _wrong(place, "llmc", f"has {found:,.10g} tokens", f"the {count:,} that its header says")
    return TokenFile("llmc", dtype, _HEADER_BYTES, count)


def _megatron(place: Place) -> TokenFile:
    index = beside(place, _idx(place))
    if index is None:
        raise _wrong(place, "megatron", "has no index beside it", f"{_idx(place)!r}")
    with index.open() as file:
        content = file.read()
    if not content.startswith(_MEGATRON) or len(content) < 34:
        raise _wrong(index, "megatron", "does not begin as an index does", "MMIDIDX")
    version, code = int.from_bytes(content[9:17], "little"), content[17]
    if version != 1 or code not in _MEGATRON_TYPES:
        raise _wrong(
            index, "megatron", f"has version {version} and type {code}", "version 1 and a type of whole numbers"
        )
    sequences, documents = (int.from_bytes(content[at : at + 8], "little") for at in (18, 26))
    dtype, at = np.dtype(_MEGATRON_TYPES[code]), 34
    if len(content) < at + 12 * sequences + 8 * documents:
        raise _wrong(index, "megatron", f"is cut off at {len(content):,} bytes", f"{sequences:,} sequences in it")
    lengths = np.frombuffer(content, "<i4", sequences, at)
    pointers = np.frombuffer(content, "<i8", sequences, at + 4 * sequences)
    bounds = np.frombuffer(content, "<i8", documents, at + 12 * sequences)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    if not np.array_equal(pointers, starts * dtype.itemsize):
        raise _wrong(index, "megatron", "lists sequences that do not follow each other", "one after the other, from 0")
    return TokenFile("megatron", dtype, 0, *_checked(place, index, dtype, _document_ends(index, ends, bounds)))


def _document_ends(index: Place, ends: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """bounds: for each document its first sequence, and the number of all at the end."""
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(ends) or (np.diff(bounds) < 0).any():
        raise _wrong(index, "megatron", "lists documents out of order", "the first sequence of each, and their number")
    return np.concatenate([[0], ends])[bounds[1:]]


def _datatrove(place: Place) -> TokenFile:
    index = beside(place, f"{place.name}.index")
    if index is None:
        raise _wrong(place, "datatrove", "has no index beside it", f"'{place.name}.index'")
    with index.open() as file:
        content = file.read()
    if len(content) % 8 or not content:
        raise _wrong(index, "datatrove", f"has {len(content):,} bytes", "8 for each document")
    ends = np.frombuffer(content, "<u8").astype(np.int64)
    size = place.num_bytes / max(1, int(ends[-1]))
    if size not in (2, 4):
        raise _wrong(
            place, "datatrove", f"has {place.num_bytes:,} bytes", f"2 or 4 for each of {int(ends[-1]):,} tokens"
        )
    dtype = np.dtype("<u2" if size == 2 else "<u4")
    return TokenFile("datatrove", dtype, 0, *_checked(place, index, dtype, ends))


def _checked(place: Place, index: Place, dtype: np.dtype, ends: np.ndarray) -> tuple[int, np.ndarray]:
    """The number of tokens and the ends, where both files are of one piece."""
    count = place.num_bytes // dtype.itemsize
    if len(ends) and ((np.diff(ends, prepend=0) < 0).any() or ends[-1] != count or place.num_bytes % dtype.itemsize):
        found = f"ends at token {int(ends[-1]):,}, but {place} has {place.num_bytes / dtype.itemsize:,.10g}"
        raise InputError(f"{index} {found}; expected an index of this file", key="data.path")
    return count, ends


def _npy(place: Place, head: bytes) -> TokenFile:
    try:
        stream = io.BytesIO(head)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except ValueError as error:
        raise _wrong(place, "npy", f"has a broken header ({error})", "what numpy.save writes") from None
    if dtype.kind not in "ui" or len(shape) != 1:
        raise _wrong(place, "npy", f"holds {dtype} of shape {shape}", "whole numbers in one row")
    if place.num_bytes != stream.tell() + shape[0] * dtype.itemsize:
        raise _wrong(place, "npy", f"has {place.num_bytes:,} bytes", f"{shape[0]:,} numbers, as its header says")
    return TokenFile("npy", dtype, stream.tell(), shape[0])


def _plain(place: Place, format: str, head: bytes, is_given: bool) -> TokenFile:
    dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[format])
    if place.num_bytes % dtype.itemsize:
        found = f"has {place.num_bytes:,} bytes"
        raise _wrong(place, format, found, f"{dtype.itemsize} for each token (data.format: {', '.join(TOKEN_FORMATS)})")
    if not is_given and _looks_wide(head):
        problem = f"{place} looks like numbers of 32 bits, but has no header; expected format: uint32, or uint16"
        raise InputError(problem, key="data.format")
    return TokenFile(format, dtype, 0, place.num_bytes // dtype.itemsize)


def _looks_wide(head: bytes) -> bool:
    """Whether every second number of 16 bits is nearly zero, as in tokens of 32 bits, and others are not."""
    halves = np.frombuffer(head[: len(head) // 4 * 4], "<u2").reshape(-1, 2)
    return len(halves) >= 8 and bool((halves[:, 1] < 8).all() and (halves[:, 0] >= 8).any())


def _idx(place: Place) -> str:
    return f"{os.path.splitext(place.name)[0]}.idx"


def _wrong(place: Place, format: str, found: str, expected: str) -> InputError:
    return InputError(f"{place} {found}; expected {expected}, for format: {format}", key="data.path")
