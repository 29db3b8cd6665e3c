"""Files with labelled samples, texts and images, for tests of sources and of what reads them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from factories import save_words
from raystage.data.plan import DataPlan
from raystage.data.tokenizer_names import BYTE_TOKENIZER, NO_TOKENIZER
from raystage.sources.corpus import Corpus, SourceOptions
from raystage.sources.table import read_corpus

CLASSES = ("bird", "cat", "dog")
FRACTION = 0.3  # held out
# What a sample is and its class.
Pair = tuple[Any, str]


def texts(count: int = 60) -> list[Pair]:
    return [(f"sample {number} of its kind", CLASSES[number % 3]) for number in range(count)]


def images(count: int = 60, shape: tuple[int, ...] = (8, 8), seed: int = 0) -> list[Pair]:
    draws = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return [(draw, CLASSES[number % 3]) for number, draw in enumerate(draws)]


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_jsonl(folder: Path, samples: Sequence[Pair]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in samples]
    (folder / "a.jsonl").write_text("".join(lines[: len(lines) // 2]))
    (folder / "b.jsonl").write_text("".join(lines[len(lines) // 2 :]))
    return folder


def write_parquet(folder: Path, samples: Sequence[Pair]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    half = len(samples) // 2
    for name, part in (("a", samples[:half]), ("b", samples[half:])):
        pq.write_table(_table(part), folder / f"{name}.parquet", row_group_size=16)
    return folder


def write_saved(folder: Path, samples: Sequence[Pair], names: Sequence[str] = ()) -> Path:
    """As `datasets` saves them, with the classes as numbers and their names in the schema. names: of the columns."""
    folder.mkdir(parents=True, exist_ok=True)
    table = _table(samples, True, names)
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


def _table(samples: Sequence[Pair], numbered: bool = False, names: Sequence[str] = ()) -> pa.Table:
    labels = [CLASSES.index(label) if numbered else label for _, label in samples]
    contents = [one if isinstance(one, str) else {"bytes": png(one), "path": "a.png"} for one, _ in samples]
    content, label = names or ("text" if isinstance(samples[0][0], str) else "image", "label")
    table = pa.table({content: contents, label: labels})
    features = {"features": {label: {"names": list(CLASSES), "_type": "ClassLabel"}}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": features})} if numbered else None)


def write_folders(folder: Path, samples: Sequence[Pair]) -> Path:
    for number, (pixels, label) in enumerate(samples):
        file = folder / label / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(pixels))
    return folder


def write_npz(folder: Path, samples: Sequence[Pair]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("a", samples[: len(samples) // 2]), ("b", samples[len(samples) // 2 :])):
        np.savez(folder / f"{name}.npz", images=np.stack([one for one, _ in part]), labels=[label for _, label in part])
    return folder


_LABEL, _IMAGE = SourceOptions(label="label"), SourceOptions(label="label", image="image")
# By name the source, its options, what the samples are, and what writes them below a folder.
LABELLED: dict[str, tuple[str, SourceOptions, Callable[..., list[Pair]], Callable[..., Path]]] = {
    "jsonl": ("jsonl", _LABEL, texts, write_jsonl),
    "parquet": ("parquet", _LABEL, texts, write_parquet),
    "huggingface": ("huggingface", _LABEL, texts, write_saved),
    "parquet with images": ("parquet", _IMAGE, images, write_parquet),
    "huggingface with images": ("huggingface", _IMAGE, images, write_saved),
    "images": ("images", SourceOptions(), images, write_folders),
    "arrays": ("arrays", SourceOptions(), images, write_npz),
}


def comparable(content: Any) -> bytes:
    return content if isinstance(content, bytes) else content.tobytes()


def pairs_of(corpus: Corpus, fraction: float = FRACTION) -> tuple[list[tuple[bytes, str]], list[tuple[bytes, str]]]:
    """(training, held-out) samples with the names of their classes, in the order in which they are read."""
    classes = corpus.samples(fraction).classes
    sides: tuple[list, list] = ([], [])
    for piece in corpus.pieces(fraction):
        for one in piece.read():
            sides[one.is_held_out].append((comparable(one.content.content), classes[one.content.label]))
    return sides


def write_language_stand_ins(folder: Path) -> None:
    """What jobs/text/languages.py writes, in its form."""
    shutil.rmtree(folder, ignore_errors=True)
    write_jsonl(folder / "all", texts(400))
    (folder / "all/a.jsonl").rename(folder / "sentences.jsonl")
    (folder / "all/b.jsonl").rename(folder / "labelled.jsonl")
    save_words(folder / "words", "sample", "of", "its", "kind")


def planned(source: str, path: str, options: SourceOptions = _LABEL, fraction: float = 0.3, **facts: Any) -> DataPlan:
    """The data as a plan has them, with the byte tokenizer where they are text."""
    corpus = read_corpus(source, (path,), options)
    training, held_out = corpus.split(fraction)
    samples = corpus.samples(fraction)
    tokenizer = NO_TOKENIZER if samples and samples.image else BYTE_TOKENIZER
    plan = DataPlan(source, (path,), tokenizer, fraction, corpus.fingerprint, tokenizer, options, samples=samples)
    return replace(plan, train=training.size, held_out=held_out.size, **facts)
