"""Tokens: documents turned into two streams, and batches drawn from them by position alone.

Which tokens a batch holds depends on the seed and on the position in the run, never on how many
workers there are or what was read before. So a resumed run, a grown run and a baseline read the same
tokens at the same position.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from raystage.corpus import Document, read_corpus
from raystage.errors import InputError
from raystage.hf_tokenizer import pretrained
from raystage.resolve_shape import BYTE_VOCABULARY
from raystage.sources import DataPlan

_SEPARATOR_BYTE = BYTE_VOCABULARY - 1


class Tokenizer(Protocol):
    """Bytes of one document to token ids; `size` is one more than the largest id."""

    size: int

    def encode(self, text: bytes) -> np.ndarray: ...


@dataclass(frozen=True)
class ByteTokenizer:
    """Every byte is a token; 256 ends a document."""

    size: int = BYTE_VOCABULARY

    def encode(self, text: bytes) -> np.ndarray:
        return np.append(np.frombuffer(text, dtype=np.uint8).astype(np.uint16), np.uint16(_SEPARATOR_BYTE))


class PretrainedTokenizer:
    """A Hugging Face tokenizer, by hub name or folder; its end-of-sequence token ends a document."""

    def __init__(self, name: str) -> None:
        try:
            self._tokenizer = pretrained(name)
        except InputError as error:
            problem = f"{name!r} cannot be loaded as a tokenizer ({error.problem})"
            raise InputError(problem, key="data.tokenizer") from None
        self.size = len(self._tokenizer)

    def encode(self, text: bytes) -> np.ndarray:
        ids = self._tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False, verbose=False)
        end = self._tokenizer.eos_token_id
        return np.array(ids if end is None else [*ids, end], dtype=np.uint32)


@dataclass(frozen=True)
class Streams:
    """The tokens of all training documents laid end to end, and of all held-out ones."""

    train: np.ndarray
    held_out: np.ndarray


def make_tokenizer(name: str) -> Tokenizer:
    return ByteTokenizer() if name == "bytes" else PretrainedTokenizer(name)


def open_streams(data: DataPlan, vocab_size: int, cache: Path | None = None) -> Streams:
    """The token streams of `data`, memory-mapped from this machine's cache, made there on first use.

    Raises InputError where the text on this machine is not the text that was planned with, or the
    tokenizer has more tokens than the model's vocabulary.
    """
    folder = (cache or default_cache()) / _cache_key(data)
    if not (folder / "index.json").exists():
        _tokenize(data, folder)
    index = json.loads((folder / "index.json").read_text())
    if index["tokenizer_size"] > vocab_size:
        raise InputError(
            f"found {vocab_size}; the tokenizer {data.tokenizer!r} has {index['tokenizer_size']} tokens",
            key="model.vocab_size",
        )
    return Streams(
        *(np.memmap(folder / name, dtype=index["dtype"], mode="r") for name in ("train.bin", "held_out.bin"))
    )


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raystage" / "tokens"


def _cache_key(data: DataPlan) -> str:
    return sha256(json.dumps(data.facts(), sort_keys=True).encode()).hexdigest()[:32]


def _tokenize(data: DataPlan, folder: Path) -> None:
    """Write both streams beside `folder` and move them there whole, so that a half cache is never seen."""
    corpus = read_corpus(data.source, data.path)
    if corpus.fingerprint != data.fingerprint:
        raise InputError(
            f"the text on this machine ({corpus.fingerprint[:12]}) is not the one that was planned with "
            f"({data.fingerprint[:12]}); expected the same files (for python-stdlib: the same Python) everywhere",
            key="data",
        )
    tokenizer = make_tokenizer(data.tokenizer)
    dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
    work = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    work.mkdir(parents=True)
    train, held_out = corpus.split(data.validation_fraction)
    _write_stream(train, tokenizer, dtype, work / "train.bin")
    _write_stream(held_out, tokenizer, dtype, work / "held_out.bin")
    (work / "index.json").write_text(json.dumps({"dtype": dtype.__name__, "tokenizer_size": tokenizer.size}))
    try:
        work.rename(folder)
    except OSError:  # another worker on this machine was first; its streams are the same
        shutil.rmtree(work)


def _write_stream(documents: list[Document], tokenizer: Tokenizer, dtype: type, path: Path) -> None:
    with path.open("wb") as file:
        for document in documents:
            file.write(tokenizer.encode(document.path.read_bytes()).astype(dtype).tobytes())


class Reader:
    """Sequences of `length + 1` tokens (inputs and the targets one further on).

    The stream is cut into windows of `context_length`, a run's longest; every epoch goes through all of
    them in an order of its own, drawn from (seed, epoch). The tokens of a run are those of window
    `order[n mod windows]` of epoch `n div windows`, n = 0, 1, ..., laid end to end. Where sequences are shorter than
    windows, a window is read in pieces, one after the other: so a token position holds the same text at any length.
    """

    def __init__(self, stream: np.ndarray, context_length: int, seed: int) -> None:
        self.stream, self.context_length, self.seed = stream, context_length, seed
        self.windows = (len(stream) - 1) // context_length
        if self.windows < 1:
            raise InputError(
                f"found {len(stream)} tokens, fewer than one sequence of context_length {context_length}", key="data"
            )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def sequences(self, first: int, count: int, length: int | None = None) -> np.ndarray:
        """Sequences `first` to `first + count` of the run: int64 of shape (count, length + 1).

        length: a divisor of context_length, or all of it. Sequence n begins at token n * length of the run.
        """
        length = length or self.context_length
        return np.stack([self._piece(number * length, length) for number in range(first, first + count)])

    def spread(self, count: int) -> np.ndarray:
        """`count` windows spread evenly over the stream, each once: for evaluation."""
        count = min(count, self.windows)
        starts = [number * self.windows // count * self.context_length for number in range(count)]
        return np.stack([self._read(start, self.context_length) for start in starts])

    def _piece(self, position: int, length: int) -> np.ndarray:
        """The sequence at a token position of the run, within one window."""
        number, inside = divmod(position, self.context_length)
        return self._read(self._place(number) * self.context_length + inside, length)

    def _place(self, number: int) -> int:
        epoch, index = divmod(number, self.windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, self.windows)
        return int(self._order[index])

    def _read(self, start: int, length: int) -> np.ndarray:
        return self.stream[start : start + length + 1].astype(np.int64)


def epoch_order(seed: int, epoch: int, windows: int) -> np.ndarray:
    """A permutation of `windows`. NumPy keeps a bit generator's raw stream stable for ever (NEP 19),
    a Generator's shuffle not: so the order is that of sorted raw draws."""
    draws = np.random.Philox(key=[seed % 2**64, epoch]).random_raw(windows)
    return np.argsort(draws, kind="stable")
