"""How fast rows are hashed, tokenized and read, and in how much memory: a corpus several times larger than the limit.

    python benchmarks/sources.py --gigabytes 2 --limit-megabytes 512

Makes JSON lines and Parquet of made-up words in a temporary folder, and plans and tokenizes them in processes of their
own, whose private memory (RLIMIT_DATA) is limited. Then sequences are read as a worker reads them. Needs Linux, and six
times the corpus of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystage.data.plan import DataPlan
from raystage.data.token_cache import open_index
from raystage.data.token_index import cache_folder
from raystage.data.tokenizer_names import tokenizer_fingerprint
from raystage.data.tokens import TokenWindows, open_streams
from raystage.sources.table import read_corpus

FRACTION = 0.02
SEQUENCE, BATCH = 1024, 256
FILES = 8


def made_texts(num_bytes: int, seed: int) -> Iterator[str]:
    """Documents of about 3 KB, no two alike, from a vocabulary with Zipf's distribution."""
    draws = np.random.default_rng(seed)
    words = np.array(
        ["".join(map(chr, draws.integers(97, 123, size=length))) for length in draws.integers(2, 11, 5000)]
    )
    written = 0
    while written < num_bytes:
        text = " ".join(words[np.minimum(draws.zipf(1.3, size=500), 5000) - 1])
        written += len(text)
        yield text


def make_jsonl(folder: Path, num_bytes: int) -> None:
    folder.mkdir()
    for number in range(FILES):
        with (folder / f"{number}.jsonl").open("w") as file:
            for text in made_texts(num_bytes // FILES, number):
                file.write(json.dumps({"id": number, "text": text}) + "\n")


def make_parquet(folder: Path, rows: Path) -> None:
    """The same documents."""
    folder.mkdir()
    schema = pa.schema({"text": pa.string()})
    for file in sorted(rows.iterdir()):
        with pq.ParquetWriter(folder / f"{file.stem}.parquet", schema) as writer, file.open() as lines:
            while part := [json.loads(line)["text"] for _, line in zip(range(10_000), lines, strict=False)]:
                writer.write_table(pa.table({"text": part}, schema=schema))


def limit(megabytes: int) -> None:
    """From now on this process, and each that it starts, gets no more private memory than that beyond what it has."""
    status = Path("/proc/self/status").read_text().splitlines()
    has = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    most = has + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The peak of resident memory in MB, files that are mapped included: those the system may drop at any time. Not
    ru_maxrss: that begins with what the parent had."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))


def plan(source: str, path: str, megabytes: int) -> dict:
    limit(megabytes)
    start = time.perf_counter()
    corpus = read_corpus(source, (path,))
    sides = corpus.split(FRACTION)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "rows": len(corpus),
        "bytes": sum(side.size.num_bytes for side in sides),
        "fingerprint": corpus.fingerprint,
        "peak": peak(),
    }


def tokenize(source: str, path: str, megabytes: int, workers: int, fingerprint: str, cache: str) -> dict:
    limit(megabytes)
    data = DataPlan(source, (path,), "bytes", FRACTION, fingerprint)
    start = time.perf_counter()
    index = open_index(data, cache_folder(data, Path(cache)), workers)
    return {"seconds": time.perf_counter() - start, "tokens": index.train_tokens, "peak": peak()}


def read(source: str, path: str, fingerprint: str, cache: str) -> dict:
    """Batches as a worker reads them, at places all over the text."""
    data = DataPlan(source, (path,), "bytes", FRACTION, fingerprint)
    windows = TokenWindows(open_streams(data, 257, Path(cache)).train, SEQUENCE, seed=0)
    start, batches = time.perf_counter(), 100
    for number in range(batches):
        windows.sequences(number * BATCH, BATCH)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": batches * BATCH * SEQUENCE, "peak": peak()}


def make_tokenizer(folder: Path, rows: Path) -> None:
    """A byte-level BPE of 8,192 tokens, trained on a part of the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with (rows / "0.jsonl").open() as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(2000), lines, strict=False)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def cpu_seconds() -> tuple[float, float]:
    """Of this process, and of those it started that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, others = (one.ru_utime + one.ru_stime for one in used)
    return own, others


def measure_bpe(rows: Path, folder: Path) -> None:
    """What a second process saves where tokenizing takes most of the time."""
    make_tokenizer(folder / "bpe", rows)
    corpus = read_corpus("jsonl", (str(rows),))
    name = str(folder / "bpe")
    data = DataPlan("jsonl", (str(rows),), name, FRACTION, corpus.fingerprint, tokenizer_fingerprint(name))
    size = sum(side.size.num_bytes for side in corpus.split(FRACTION))
    print(f"jsonl, a BPE of 8,192 tokens: {len(corpus):,} rows, {size / 1e6:,.0f} MB of text")
    seconds = {}
    for workers in (1, 2):
        start = time.perf_counter()
        before = cpu_seconds()
        open_index(data, cache_folder(data, folder / f"bpe-{workers}"), workers)
        seconds[workers] = time.perf_counter() - start
        own, of_others = (after - one for after, one in zip(cpu_seconds(), before, strict=True))
        cpu = f"CPU {own:.1f} s here, {of_others:.1f} s in other processes"
        print(f"  tokenized by {workers}: {seconds[workers]:.1f} s, {size / seconds[workers] / 1e6:,.1f} MB/s; {cpu}")
    print(f"  a factor of {seconds[1] / seconds[2]:.2f}")


STEPS = {"plan": plan, "tokenize": tokenize, "read": read}


def in_child(step: str, *arguments: object) -> dict:
    command = [sys.executable, __file__, "--step", step, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(source: str, path: str, cache: Path, megabytes: int) -> None:
    os.environ["XDG_CACHE_HOME"] = str(cache / source)
    first = in_child("plan", source, path, megabytes)
    again = in_child("plan", source, path, megabytes)
    assert again["fingerprint"] == first["fingerprint"]
    print(f"{source}: {first['rows']:,} rows, {first['bytes'] / 1e9:.2f} GB of text, limit {megabytes} MB")
    for name, one in (("first plan", first), ("second plan", again)):
        rate = f"{one['rows'] / one['seconds']:,.0f} rows/s, {one['bytes'] / one['seconds'] / 1e6:,.0f} MB/s"
        print(f"  {name}: {one['seconds']:.1f} s, {rate}, peak {one['peak']:,} MB")
    for workers in (1, 2):
        tokens = cache / f"{source}-{workers}"
        one = in_child("tokenize", source, path, megabytes, workers, first["fingerprint"], str(tokens))
        rate = f"{first['rows'] / one['seconds']:,.0f} rows/s, {one['tokens'] / one['seconds'] / 1e6:,.1f}M tokens/s"
        print(f"  tokenized by {workers}: {one['seconds']:.1f} s, {rate}, peak {one['peak']:,} MB")
    one = in_child("read", source, path, first["fingerprint"], str(tokens))
    print(f"  read: {one['tokens'] / one['seconds'] / 1e6:,.1f}M tokens/s, sequences of {SEQUENCE}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--limit-megabytes", type=int, default=512)
    parser.add_argument("--bpe-megabytes", type=int, default=64)
    parser.add_argument("--sources", default="jsonl,parquet")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(STEPS[asked.step[0]](*json.loads(asked.step[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_jsonl(Path(folder, "few"), asked.bpe_megabytes * 10**6)
        measure_bpe(Path(folder, "few"), Path(folder))
        make_jsonl(Path(folder, "jsonl"), int(asked.gigabytes * 1e9))
        if "parquet" in asked.sources:
            make_parquet(Path(folder, "parquet"), Path(folder, "jsonl"))
        for source in asked.sources.split(","):
            measure(source, str(Path(folder, source)), Path(folder), asked.limit_megabytes)


if __name__ == "__main__":
    main()
