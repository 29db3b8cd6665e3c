"""Tokenizers: from the bytes of a document to token ids, with an id at the end that separates it from the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raystage.data.chat_tokenizer import ChatTokenizer, Marked
from raystage.data.plan import DataPlan
from raystage.data.tokenizer_files import no_end
from raystage.data.tokenizer_names import BYTE_TOKENIZER, BYTE_VOCABULARY
from raystage.errors import InputError
from raystage.lazy import hf_tokenizer

_SEPARATOR_BYTE = BYTE_VOCABULARY - 1
_KEY = "data.tokenizer"


class Tokenizer(Protocol):
    """From the content of a document, mostly bytes, to token ids. `size` is one more than the largest id."""

    size: int

    def encode(self, text: bytes) -> np.ndarray | Marked: ...


@dataclass(frozen=True)
class ByteTokenizer:
    """Every byte is a token, in any encoding; 256 ends a document."""

    size: int = BYTE_VOCABULARY

    def encode(self, text: bytes) -> np.ndarray:
        return np.append(np.frombuffer(text, dtype=np.uint8).astype(np.uint16), np.uint16(_SEPARATOR_BYTE))


@dataclass(frozen=True)
class TokenIds:
    """For a source that gives tokens: its ids as they are."""

    size: int

    def encode(self, text: np.ndarray) -> np.ndarray:
        return text


class PretrainedTokenizer:
    """A Hugging Face tokenizer, by Hub name or folder. Its end-of-text token, or `end_token`, ends a document.

    Text that looks like a control token is encoded as text. errors: "strict" refuses bytes that are not UTF-8,
    "replace" puts U+FFFD in their place.
    """

    def __init__(self, name: str, end_token: str | None = None, errors: str = "strict") -> None:
        self._tokenizer = hf_tokenizer.for_training(name)
        self._errors = errors
        self._end = self._end_of(name, end_token)
        self.size = max(hf_tokenizer.num_ids(self._tokenizer), self._end + 1)

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
    if data.largest_token is not None:
        return TokenIds(data.largest_token.token + 1)
    if data.options.are_chats:
        return ChatTokenizer(data.tokenizer, data.chat_template)
    if data.tokenizer == BYTE_TOKENIZER:
        return ByteTokenizer()
    return PretrainedTokenizer(data.tokenizer, data.end_token, data.encoding_errors)
