"""Rows that do not fit into memory: hashed, split and read by a process that may not hold all of them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelled_files import png

ROWS, ROW_BYTES = 12_000, 10_000
SIDE = 100  # of an image in pixels
LIMIT_MIB = 56  # of 114 MiB of text
# Of as many bytes of images. To read and decode a group of them, Arrow and Pillow need about 50 MiB.
IMAGES_MIB = 80

SCRIPT = """
import resource, sys
import PIL.Image, pyarrow.parquet
from pathlib import Path
from raystage.sources import jsonl, parquet
from raystage.sources.corpus import Sample, SourceOptions
from raystage.sources.labelled import arrays
from raystage.sources.table import read_corpus

def has():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

PIL.Image.init()  # its decoders are code, not data
source, path, mebibytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
if mebibytes:
    most = has() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
if source == "all at once":
    print(len([document.content for piece in read_corpus("jsonl", (path,)).pieces(0.1) for document in piece.read()]))
else:
    options = SourceOptions(label="label", image="image") if path.endswith("images.parquet") else SourceOptions()
    corpus = read_corpus(source, (path,), options)
    contents = (document.content for piece in corpus.pieces(0.1) for document in piece.read())
    print(sum(one.content.nbytes if isinstance(one, Sample) else len(one) for one in contents))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as compressed JSON lines, which cannot be read in parts, and as Parquet."""
    folder = tmp_path_factory.mktemp("rows")
    texts = [f"{number:08}" + "words that fill a row " * (ROW_BYTES // 22) for number in range(ROWS)]
    with gzip.open(folder / "a.jsonl.gz", "wt", compresslevel=1) as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=500)
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE), dtype=np.uint8)
    np.savez(folder / "a.npz", images=pixels, labels=np.arange(ROWS) % 3)
    bytes_ = [png(one) for one in pixels]
    pq.write_table(
        pa.table({"image": bytes_, "label": np.arange(ROWS) % 3}), folder / "images.parquet", row_group_size=500
    )
    return folder


def read(source: str, path: Path, mebibytes: int = LIMIT_MIB) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, source, str(path), str(mebibytes)]
    # Arrow's own allocator reserves a gigabyte of addresses, and glibc's 64 MiB for each thread.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all private memory on Linux only")
@pytest.mark.parametrize(("source", "name"), [("jsonl", "a.jsonl.gz"), ("parquet", "a.parquet")])
def test_rows_are_streamed(source: str, name: str, folder: Path) -> None:
    done = read(source, folder / name)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == ROWS * (8 + 22 * (ROW_BYTES // 22))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all private memory on Linux only")
@pytest.mark.parametrize(("source", "name"), [("arrays", "a.npz"), ("parquet", "images.parquet")])
def test_samples_are_streamed(source: str, name: str, folder: Path) -> None:
    done = read(source, folder / name, IMAGES_MIB)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == ROWS * SIDE * SIDE


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all private memory on Linux only")
def test_the_limit_is_one(folder: Path) -> None:
    """Whoever keeps all of them does not get through."""
    done = read("all at once", folder / "a.jsonl.gz")
    assert "MemoryError" in done.stderr
