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


def write_saved(folder: Path, texts: Sequence[str] = TEXTS, field: str = "text", split: str = "train") -> Path:
    """What `datasets.Dataset.save_to_disk` writes: two Arrow files of record batches in a stream, and two of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": range(len(texts)), field: texts})
    names, half = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"], (len(texts) + 1) // 2
    for name, part in zip(names, (table[:half], table[half:]), strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part, max_chunksize=7)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1", "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {field: {"dtype": "string", "_type": "Value"}}}))
    return folder


WRITERS: dict[str, tuple[str, Callable[..., Path]]] = {
    "jsonl": (".jsonl", write_jsonl),
    "parquet": (".parquet", write_parquet),
}
