"""Files with rows, for tests of sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = [f"document {number}\n" * (number % 7 + 3) for number in range(60)]


def write_jsonl(path: Path, texts: Sequence[str] = TEXTS, field: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": number, field: text}) + "\n" for number, text in enumerate(texts)))
    return path


def write_parquet(path: Path, texts: Sequence[str] = TEXTS, field: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(len(texts)), field: texts}), path, row_group_size=16)
    return path


WRITERS: dict[str, tuple[str, Callable[..., Path]]] = {
    "jsonl": (".jsonl", write_jsonl),
    "parquet": (".parquet", write_parquet),
}
