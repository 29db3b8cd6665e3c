"""Files of tokens as other programs write them, by the public definitions of their formats."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Documents = Sequence[Sequence[int]]


def flat(documents: Documents) -> list[int]:
    return [token for document in documents for token in document]


def write_llmc(folder: Path, documents: Documents) -> Path:
    """karpathy/llm.c, dev/data/data_common.py: 256 int32 (magic, version, count), then uint16."""
    tokens = flat(documents)
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    (folder / "a.bin").write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))
    return folder / "a.bin"


def write_llama3(folder: Path, documents: Documents) -> Path:
    """The same for Llama 3: another magic number, uint32."""
    tokens = flat(documents)
    header = struct.pack("<256i", 20240801, 7, len(tokens), *[0] * 253)
    (folder / "a.bin").write_bytes(header + struct.pack(f"<{len(tokens)}I", *tokens))
    return folder / "a.bin"


def write_nanogpt(folder: Path, documents: Documents) -> Path:
    """karpathy/nanoGPT, data/*/prepare.py: uint16, nothing else."""
    np.array(flat(documents), dtype=np.uint16).tofile(folder / "a.bin")
    return folder / "a.bin"


def write_olmo(folder: Path, documents: Documents) -> Path:
    """allenai/OLMo: a memory map in a file named .npy, without NumPy's header."""
    tokens = flat(documents)
    mapped = np.memmap(folder / "a.npy", dtype=np.uint16, mode="w+", shape=(len(tokens),))
    mapped[:] = tokens
    mapped.flush()
    return folder / "a.npy"


def write_npy(folder: Path, documents: Documents) -> Path:
    np.save(folder / "a.npy", np.array(flat(documents), dtype=np.int64))
    return folder / "a.npy"


def write_megatron(folder: Path, documents: Documents, per_document: int = 2) -> Path:
    """NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py; every document in several sequences."""
    sequences = [part for one in documents for part in (one[:per_document], one[per_document:]) if len(part)]
    counts = [len([part for part in (one[:per_document], one[per_document:]) if len(part)]) for one in documents]
    lengths = [len(one) for one in sequences]
    pointers = [4 * sum(lengths[:place]) for place in range(len(lengths))]
    bounds = [sum(counts[:place]) for place in range(len(counts) + 1)]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, len(sequences), len(bounds))
    index += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(pointers)}q", *pointers)
    (folder / "a.idx").write_bytes(index + struct.pack(f"<{len(bounds)}q", *bounds))
    tokens = flat(documents)
    (folder / "a.bin").write_bytes(struct.pack(f"<{len(tokens)}i", *tokens))
    return folder / "a.bin"


def write_datatrove(folder: Path, documents: Documents) -> Path:
    """huggingface/datatrove, pipeline/tokens/tokenizer.py: tokens, the end of each document, and a description."""
    tokens, ends = flat(documents), np.cumsum([len(one) for one in documents]).tolist()
    (folder / "a.ds").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
    (folder / "a.ds.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    (folder / "a.ds.metadata").write_text(f"gpt2|2\n{len(tokens)}\n{len(tokens)} T")
    return folder / "a.ds"


TOKEN_WRITERS: dict[str, Callable[[Path, Documents], Path]] = {
    "llmc": write_llmc,
    "llama3": write_llama3,
    "nanogpt": write_nanogpt,
    "olmo": write_olmo,
    "npy": write_npy,
    "megatron": write_megatron,
    "datatrove": write_datatrove,
}
