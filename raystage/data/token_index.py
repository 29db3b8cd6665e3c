"""Where a machine keeps the tokens of a text, and an index of what is known about them.

The index is plain JSON, so that a plan can tell the number of tokens of a text that was tokenized before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from raystage.data.plan import DataPlan
from raystage.files.local import user_cache

INDEX, TRAIN, HELD_OUT = "index.json", "train.bin", "held_out.bin"
# A part of both sides after the other: the tokens; of conversations also a byte for each token, 1 in an answer.
_STREAMS = ("train", "held_out", "train_marks", "held_out_marks")
_VERSION = 2


@dataclass(frozen=True)
class StreamFile:
    """A file of tokens as it was written. modified_ns: its time stamp then."""

    num_bytes: int
    checksum: str
    modified_ns: int


@dataclass(frozen=True)
class TokenIndex:
    """What was made of a text. tokenizer_size: one more than the tokenizer's largest id.

    pieces, repeated, looked_at: how much of the held-out text occurs in the training text (`data.repeats`).
    train_marks, held_out_marks: of conversations; None of other text.
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
    train_marks: StreamFile | None = None
    held_out_marks: StreamFile | None = None

    @property
    def files(self) -> dict[str, StreamFile]:
        """By name all files of streams."""
        return {stream_file(name): getattr(self, name) for name in stream_names(self.train_marks is not None)}

    def to_bytes(self) -> bytes:
        content = {"version": _VERSION, **{name: one for name, one in asdict(self).items() if one is not None}}
        return json.dumps({**content, "seal": _seal(content)}).encode()


def stream_names(are_marked: bool) -> tuple[str, ...]:
    """The streams of a text: of stream 2 * part + side."""
    return _STREAMS if are_marked else _STREAMS[:2]


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
        streams = {name: StreamFile(**content.pop(name)) for name in stream_names("train_marks" in content)}
        return TokenIndex(**content, **streams)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _seal(content: dict[str, object]) -> str:
    return hashlib.sha256(_json(content)).hexdigest()[:16]


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
