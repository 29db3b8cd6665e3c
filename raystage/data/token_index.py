"""Where a machine keeps the tokens of a text, and an index of what is known about them.

The index is plain JSON, so that a plan can tell the number of tokens of a text that was tokenized before.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raystage.data.plan import DataPlan
from raystage.files.local import user_cache

INDEX, TRAIN, HELD_OUT = "index.json", "train.bin", "held_out.bin"
_SIDES = ("train", "held_out")
# What is kept beside the tokens. marks: of conversations, a byte for each token, 1 in an answer. labels: of samples,
# the number of the class of each. lengths: of every document, its tokens; of samples that are images, their pixels.
PARTS = ("marks", "labels", "lengths")
LENGTH = "<i8"
_VERSION = 3


@dataclass(frozen=True)
class StreamFile:
    """A file of tokens as it was written. modified_ns: its time stamp then."""

    num_bytes: int
    checksum: str
    modified_ns: int


@dataclass(frozen=True)
class TokenIndex:
    """What was made of a text. tokenizer_size: one more than the tokenizer's largest id.

    train_tokens, held_out_tokens: of samples that are images their pixels. pieces, repeated, looked_at: how much of the
    held-out text occurs in the training text (`data.repeats`). train_samples, held_out_samples: where a document is a
    sample. further: by name the streams beside the tokens.
    """

    dtype: str
    tokenizer_size: int
    train: StreamFile
    held_out: StreamFile
    train_tokens: int
    held_out_tokens: int
    pieces: int
    repeated: int
    looked_at: float
    train_samples: int | None = None
    held_out_samples: int | None = None
    further: Mapping[str, StreamFile] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, StreamFile]:
        """By name all files of streams."""
        streams = {"train": self.train, "held_out": self.held_out, **self.further}
        return {stream_file(name): one for name, one in streams.items()}

    def to_bytes(self) -> bytes:
        known = {name: one for name, one in asdict(self).items() if one is not None and name != "further"}
        content = {"version": _VERSION, **known, **{name: asdict(one) for name, one in self.further.items()}}
        return json.dumps({**content, "seal": _seal(content)}).encode()


def parts_of(data: DataPlan) -> tuple[str, ...]:
    """What is kept beside the tokens."""
    if data.options.are_chats:
        return ("marks", "lengths")
    return ("lengths",) if data.samples is None else ("labels", "lengths")


def stream_names(parts: Sequence[str]) -> tuple[str, ...]:
    """The streams of a text: of stream 2 * part + side."""
    return (*_SIDES, *(f"{side}_{part}" for part in parts for side in _SIDES))


def stream_file(name: str) -> str:
    return f"{name}.bin"


def default_cache() -> Path:
    return user_cache("tokens")


def cache_folder(data: DataPlan, cache: Path | None = None) -> Path:
    """The folder of a text's tokens, named by the content of text, tokenizer and split, not by their places."""
    return (cache or default_cache()) / hashlib.sha256(_json(data.facts())).hexdigest()[:32]


def read_index(folder: Path) -> TokenIndex | None:
    """None where there is no index, or one that is damaged or of another version."""
    try:
        content = json.loads((folder / INDEX).read_bytes())
        if content.pop("seal") != _seal(content) or content.pop("version") != _VERSION:
            return None
        names = stream_names([part for part in PARTS if f"train_{part}" in content])
        train, held_out, *further = (StreamFile(**content.pop(name)) for name in names)
        beside = dict(zip(names[2:], further, strict=True))
        return TokenIndex(train=train, held_out=held_out, further=beside, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def texts_longer_than(data: DataPlan, length: int, cache: Path | None = None) -> int | None:
    """How many texts to train on have more tokens, where a document is a sample; None unless this machine has tokenized
    them. Nothing but the standard library: a plan asks for it."""
    folder = cache_folder(data, cache)
    if read_index(folder) is None:
        return None
    lengths = array("q")
    try:
        lengths.frombytes((folder / stream_file("train_lengths")).read_bytes())
    except (OSError, ValueError):
        return None
    if sys.byteorder == "big":
        lengths.byteswap()
    return sum(one > length for one in lengths)


def _seal(content: dict[str, object]) -> str:
    return hashlib.sha256(_json(content)).hexdigest()[:16]


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
