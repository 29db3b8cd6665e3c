"""The text that a stage reads, as planned: the documents, the tokenizer and the split, identified by their content."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raystage.data.tokenizer_names import BYTE_TOKENIZER, NO_TOKENIZER
from raystage.data.trained_on import TrainingText
from raystage.sources.corpus import DEFAULTS, NO_TEXT, LargestToken, SourceOptions, TextSize


@dataclass(frozen=True)
class DataPlan:
    """What a stage reads. `fingerprint` identifies the text and `tokenizer_fingerprint` the tokenizer ("bytes", a Hub
    name with its commit, or the hash of the files of a folder), wherever they lie.

    tokenizer_size: one more than its largest id, where its files say so. end_token: ends a document, in place of the
    tokenizer's own. has_controls: the text contains what looks like control tokens; it is encoded as text. train,
    held_out: the size of both sides. largest_token: where the source gives tokens. text: what is trained on.
    """

    source: str
    path: tuple[str, ...]
    tokenizer: str
    validation_fraction: float
    fingerprint: str
    tokenizer_fingerprint: str = BYTE_TOKENIZER
    options: SourceOptions = DEFAULTS
    tokenizer_size: int | None = None
    end_token: str | None = None
    encoding_errors: str = "strict"
    has_controls: bool = False
    train: TextSize = NO_TEXT
    held_out: TextSize = NO_TEXT
    largest_token: LargestToken | None = None
    text: TrainingText | None = field(default=None, compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """The part of it that decides the tokens: text, tokenizer and split by content, not by place.

        A later option is left out where it has its default, so that old keys stay.
        """
        facts: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "validation_fraction": None if self.options.validation_path else self.validation_fraction,
        }
        if self.tokenizer in (BYTE_TOKENIZER, NO_TOKENIZER):
            return facts
        if self.end_token is not None:
            facts["end_token"] = self.end_token
        if self.encoding_errors != "strict":
            facts["encoding_errors"] = self.encoding_errors
        if self.has_controls:
            facts["control_tokens"] = "as text"
        return facts


def vocabulary_problem(vocab_size: int, tokenizer: str, size: int) -> str:
    """The message about a vocabulary that is smaller than the tokenizer's ids."""
    return f"found {vocab_size}; expected at least {size}: the ids of the tokenizer {tokenizer!r} go up to {size - 1}"
