"""What a stage reads, as it was planned: the text, its tokenizer and its split, each by what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raystage.data.documents import BYTE_TOKENIZER, WHOLE_FILES, TextOptions
from raystage.data.trained_on import TrainingText


@dataclass(frozen=True)
class TextSize:
    """Of one side of the split."""

    documents: int
    num_bytes: int


@dataclass(frozen=True)
class DataPlan:
    """What is read. `fingerprint` identifies the text itself and `tokenizer_fingerprint` the tokenizer
    ("bytes", a hub name with its commit, or the hash of a folder's files), wherever they lie.

    tokenizer_size: one more than its largest id, where its files say so. end_token: what ends a document, unless it is
    the tokenizer's own. has_controls: the text holds what reads like control tokens; it is encoded as text.
    train, held_out: how much text there is. text: what is trained on.
    """

    source: str
    path: tuple[str, ...]
    tokenizer: str
    validation_fraction: float
    fingerprint: str
    tokenizer_fingerprint: str = BYTE_TOKENIZER
    options: TextOptions = WHOLE_FILES
    tokenizer_size: int | None = None
    end_token: str | None = None
    encoding_errors: str = "strict"
    has_controls: bool = False
    train: TextSize = TextSize(0, 0)
    held_out: TextSize = TextSize(0, 0)
    text: TrainingText | None = field(default=None, compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """What of it decides the tokens: text, tokenizer and split by what they are, not by where they lie.

        What an earlier version did not know is left out where it is as it was.
        """
        facts: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "validation_fraction": None if self.options.validation_path else self.validation_fraction,
        }
        if self.tokenizer == BYTE_TOKENIZER:
            return facts
        if self.end_token is not None:
            facts["end_token"] = self.end_token
        if self.encoding_errors != "strict":
            facts["encoding_errors"] = self.encoding_errors
        if self.has_controls:
            facts["control_tokens"] = "as text"
        return facts


def vocabulary_problem(vocab_size: int, tokenizer: str, size: int) -> str:
    """What is wrong with a vocabulary that has no place for the tokenizer's largest id."""
    return f"found {vocab_size}; expected at least {size}: the ids of the tokenizer {tokenizer!r} go up to {size - 1}"
