"""The text that a stage reads, as planned: the documents, the tokenizer and the split, identified by their content.

A stage reads one source (`DataPlan`) or a mixture of several (`MixturePlan`). Both have `parts`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from raystage.data.order.curriculum import CurriculumPlan, TextPace, TextRead, legs_of, paces_of
from raystage.data.reading import Reading, Shares, reading_after
from raystage.data.tokenizer_names import BYTE_TOKENIZER, NO_TOKENIZER
from raystage.data.trained_on import TrainingText
from raystage.sources.corpus import DEFAULTS, NO_TEXT, LargestToken, SampleFacts, SourceOptions, TextSize

# Of byte-level BPE on English text, roughly. On other text and on code it is less.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class DataPlan:
    """What a stage reads. `fingerprint` identifies the text and `tokenizer_fingerprint` the tokenizer ("bytes", a Hub
    name with its commit, or the hash of the files of a folder), wherever they lie.

    tokenizer_size: one more than its largest id, where its files say so. end_token: ends a document, in place of the
    tokenizer's own. has_controls: the text contains what looks like control tokens; it is encoded as text. train,
    held_out: the size of both sides. largest_token: where the source gives tokens. text: what is trained on.

    chat_template: of conversations, which makes a text of each; None for that of the tokenizer, where its files are not
    known. samples: where documents are samples, which are read as a whole.
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
    chat_template: str | None = None
    samples: SampleFacts | None = None
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
        if self.options.are_chats:
            template = self.chat_template
            facts["chat_template"] = hashlib.sha256(template.encode()).hexdigest() if template else "the tokenizer's"
        if self.end_token is not None:
            facts["end_token"] = self.end_token
        if self.encoding_errors != "strict":
            facts["encoding_errors"] = self.encoding_errors
        if self.has_controls:
            facts["control_tokens"] = "as text"
        return facts

    @property
    def train_tokens(self) -> int | None:
        """The tokens to train on, exactly, where they are known before the text is tokenized."""
        return self._tokens_of(self.train)

    @property
    def about_train_tokens(self) -> int:
        """The same, and an estimate from the bytes where they are not known."""
        return self.about_tokens(self.train) if self.train_tokens is None else self.train_tokens

    @staticmethod
    def about_tokens(side: TextSize) -> int:
        """An estimate for a side: the same on every machine."""
        return side.num_bytes // BYTES_PER_TOKEN + side.documents

    @property
    def held_out_tokens(self) -> int | None:
        """The held-out tokens, in the same way."""
        return self._tokens_of(self.held_out)

    def _tokens_of(self, side: TextSize) -> int | None:
        """Known where the source gives tokens, and for bytes: one of every byte, and one that ends each document."""
        if side.num_tokens is None and self.tokenizer == BYTE_TOKENIZER:
            return side.num_bytes + side.documents
        return side.num_tokens

    @cached_property
    def content(self) -> str:
        """What tells sources apart, by content and not by name or place: 16 hex digits."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def parts(self) -> tuple[MixturePart, ...]:
        """Itself, as a mixture of one source."""
        return (MixturePart("", self, Fraction(1)),)

    @property
    def shares(self) -> Shares:
        """What it reads of which source."""
        return ((self.content, Fraction(1)),)

    @property
    def texts(self) -> tuple[TrainingText, ...]:
        """What is trained on."""
        return (self.text,)


@dataclass(frozen=True)
class MixturePart:
    """A source of a mixture. weight: its share of the windows that are read; 0 for one that is only evaluated.

    max_repeats: how often its text may be read in a run before the plan warns.
    """

    name: str
    data: DataPlan
    weight: Fraction
    max_repeats: float | None = None


@dataclass(frozen=True)
class MixturePlan:
    """What a stage with a mixture reads: several sources with one tokenizer, in the order in which they were written.

    The weights add up to 1 to within the rounding of decimals; only their ratios count.
    """

    parts: tuple[MixturePart, ...]

    @property
    def read(self) -> tuple[MixturePart, ...]:
        """The sources that are trained on."""
        return tuple(part for part in self.parts if part.weight)

    @property
    def first(self) -> DataPlan:
        """A source that is trained on: the tokenizer and its options are the same in all of them."""
        return self.read[0].data

    @property
    def tokenizer(self) -> str:
        return self.first.tokenizer

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.first.tokenizer_fingerprint

    @property
    def tokenizer_size(self) -> int | None:
        return self.first.tokenizer_size

    @property
    def largest_token(self) -> LargestToken | None:
        """Of the sources that give tokens."""
        found = [part.data.largest_token for part in self.parts if part.data.largest_token is not None]
        return max(found, key=lambda one: one.token, default=None)

    @property
    def end_token(self) -> str | None:
        return self.first.end_token

    @property
    def chat_template(self) -> str | None:
        return self.first.chat_template

    @property
    def samples(self) -> SampleFacts | None:
        """Of the first source: classes and the size of images are the same in all of them."""
        return self.first.samples

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what is read and its weights."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()

    @property
    def has_controls(self) -> bool:
        return any(part.data.has_controls for part in self.parts)

    @cached_property
    def shares(self) -> Shares:
        """What it reads of which source."""
        return tuple((part.data.content, part.weight) for part in self.read)

    @property
    def texts(self) -> tuple[TrainingText, ...]:
        """What is trained on."""
        return tuple(part.data.text for part in self.read)

    def facts(self) -> dict[str, Any]:
        """What decides the tokens: the sources by content, in order, with their exact weights.

        What is only evaluated is no part of it, as metrics are not: it changes nothing of the training.
        """
        return {"mixture": [{"weight": str(part.weight), **part.data.facts()} for part in self.read]}


# What a stage reads.
StageText = DataPlan | MixturePlan


@dataclass(frozen=True)
class EarlierText:
    """What an earlier stage of a run read. end: the position of the run where that stage ends."""

    end: int
    data: StageText
    curriculum: CurriculumPlan | None = None

    @property
    def read(self) -> TextRead:
        return TextRead(self.data.shares, isinstance(self.data, MixturePlan), self.curriculum, self.end)


def reads_by_cursors(
    data: StageText, earlier: tuple[EarlierText, ...], curriculum: CurriculumPlan | None = None
) -> bool:
    """Whether a stage or one before it has a mixture or a curriculum. Where those stages end does not matter."""
    return any(leg.is_mixture for leg in legs_of(_texts(data, earlier, curriculum)))


def reading_of(
    data: StageText, earlier: tuple[EarlierText, ...], window: int, curriculum: CurriculumPlan | None = None
) -> Reading | None:
    """Which window of which source a stage reads where, after the stages before it; None without any mixture and any
    curriculum."""
    if not reads_by_cursors(data, earlier, curriculum):
        return None
    *before, own = legs_of(_texts(data, earlier, curriculum))
    return reading_after(before, window, own.shares, own.is_mixture)


def paces_read(
    data: StageText, earlier: tuple[EarlierText, ...], window: int, curriculum: CurriculumPlan | None = None
) -> dict[str, tuple[TextPace, ...]]:
    """By the names of `Reading` the texts that are sorted, and what of them is read when."""
    return paces_of(_texts(data, earlier, curriculum), window)


def _texts(data: StageText, earlier: tuple[EarlierText, ...], curriculum: CurriculumPlan | None) -> list[TextRead]:
    return [one.read for one in (*earlier, EarlierText(-1, data, curriculum))]


def vocabulary_problem(vocab_size: int, tokenizer: str, size: int) -> str:
    """The message about a vocabulary that is smaller than the tokenizer's ids."""
    return f"found {vocab_size}; expected at least {size}: the ids of the tokenizer {tokenizer!r} go up to {size - 1}"
