"""Tokenizers: from the bytes of a document to token ids, with an id at the end that separates it from the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raystage.data.chat_tokenizer import ChatTokenizer
from raystage.data.plan import DataPlan
from raystage.data.tokenizer_files import no_end
from raystage.data.tokenizer_names import BYTE_TOKENIZER, BYTE_VOCABULARY
from raystage.errors import InputError
from raystage.lazy import hf_tokenizer
from raystage.sources.corpus import Sample

_SEPARATOR_BYTE = BYTE_VOCABULARY - 1
_KEY = "data.tokenizer"
LABEL = np.dtype(np.int32)  # of the number of a class


class Tokenizer(Protocol):
    """From the content of a document, mostly bytes, to token ids, and what belongs to them. `size` is one more than the
    largest id."""

    size: int

    def encode(self, text: bytes) -> np.ndarray | tuple[np.ndarray, ...]: ...


@dataclass(frozen=True)
class ByteTokenizer:
    """Every byte is a token, in any encoding; 256 ends a document. start: no token begins a sample."""

    size: int = BYTE_VOCABULARY
    start: int | None = None

    def encode(self, text: bytes) -> np.ndarray:
        return np.append(np.frombuffer(text, dtype=np.uint8).astype(np.uint16), np.uint16(_SEPARATOR_BYTE))


@dataclass(frozen=True)
class TokenIds:
    """For a source that gives tokens: its ids as they are."""

    size: int

    def encode(self, text: np.ndarray) -> np.ndarray:
        return text


@dataclass(frozen=True)
class Pixels:
    """For images: (their pixels as they are, the number of the class)."""

    size: int = 256

    def encode(self, text: Sample) -> tuple[np.ndarray, ...]:
        return text.content.reshape(-1), _label(text)


@dataclass(frozen=True)
class LabelledTexts:
    """For texts that are samples: (the tokens, the number of the class)."""

    tokenizer: ByteTokenizer | PretrainedTokenizer

    @property
    def size(self) -> int:
        return self.tokenizer.size

    def encode(self, text: Sample) -> tuple[np.ndarray, ...]:
        tokens = self.tokenizer.encode(text.content)
        if self.tokenizer.start is not None:
            tokens = np.concatenate([np.array([self.tokenizer.start], tokens.dtype), tokens])
        return tokens, _label(text)


def _label(sample: Sample) -> np.ndarray:
    return np.array([sample.label or 0], LABEL)


class PretrainedTokenizer:
    """A Hugging Face tokenizer, by Hub name or folder. Its end-of-text token, or `end_token`, ends a document.

    Text that looks like a control token is encoded as text. errors: "strict" refuses bytes that are not UTF-8,
    "replace" puts U+FFFD in their place. start: the token that begins a sample ([CLS] of BERT), where there is one.
    """

    def __init__(self, name: str, end_token: str | None = None, errors: str = "strict") -> None:
        self._tokenizer = hf_tokenizer.for_training(name)
        self._errors = errors
        self._end = self._end_of(name, end_token)
        self.size = max(hf_tokenizer.num_ids(self._tokenizer), self._end + 1)
        self.start: int | None = self._tokenizer.cls_token_id

    def _end_of(self, name: str, end_token: str | None) -> int:
        if end_token is not None:
            found = self._tokenizer.get_vocab().get(end_token)
            if found is None:
                problem = f"found {end_token!r}, which is no token of {name!r}; expected one that is"
                raise InputError(problem, key="data.end_token")
            return found
        if self._tokenizer.eos_token_id is None:
            raise InputError(no_end(name), key=_KEY)
        return self._tokenizer.eos_token_id

    def encode(self, text: bytes) -> np.ndarray:
        """Raises UnicodeDecodeError where errors is strict and the text is not UTF-8."""
        text = text.decode("utf-8", self._errors)
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return np.array([*ids, self._end], dtype=np.int64)


def make_tokenizer(data: DataPlan) -> Tokenizer:
    """What makes token ids of the documents of a source.

    Raises InputError where it cannot be loaded, or has no token that ends a document.
    """
    if data.samples is not None:
        return Pixels() if data.samples.image else LabelledTexts(_of_text(data))
    if data.largest_token is not None:
        return TokenIds(data.largest_token.token + 1)
    if data.options.are_chats:
        return ChatTokenizer(data.tokenizer, data.chat_template)
    return _of_text(data)


def _of_text(data: DataPlan) -> ByteTokenizer | PretrainedTokenizer:
    if data.tokenizer == BYTE_TOKENIZER:
        return ByteTokenizer()
    return PretrainedTokenizer(data.tokenizer, data.end_token, data.encoding_errors)
