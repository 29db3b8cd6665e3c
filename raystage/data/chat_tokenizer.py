"""Conversations to token ids, with a mark on every token of an answer.

A chat template makes a text of a conversation. What stands in its `generation` blocks are the answers. The template
says how a conversation begins and ends; nothing is added to it. Text of a message that looks like a control token is
encoded as text, as in documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from raystage.data.chat_template import KEY, checked
from raystage.errors import InputError
from raystage.lazy import hf_tokenizer
from raystage.sources.chats import messages_of
from raystage.units import first_line

# Around text of a message that looks like a control token: characters for private use, which no template writes.
_BEGIN, _END = "\U000f0000", "\U000f0001"
_QUOTED = re.compile(f"{_BEGIN}([^{_END}]*){_END}")


class Marked(NamedTuple):
    """ids: int64 of shape (tokens,). marks: uint8 of the same shape, 1 for every token of an answer."""

    ids: np.ndarray
    marks: np.ndarray


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template: `template`, or its own where that is None."""

    def __init__(self, name: str, template: str | None) -> None:
        self._tokenizer = hf_tokenizer.for_training(name)
        if not self._tokenizer.is_fast:
            problem = f"found {name!r}, which does not say which token stands for which part of a text"
            raise InputError(f"{problem}; expected a fast tokenizer (tokenizer.json)", key="data.tokenizer")
        self._template = checked(template or hf_tokenizer.own_template(self._tokenizer), f"the tokenizer {name!r}")
        controls = "|".join(
            re.escape(one) for one in sorted(hf_tokenizer.control_tokens(self._tokenizer), key=len, reverse=True)
        )
        self._controls = re.compile(controls or "(?!)")
        self.size = hf_tokenizer.num_ids(self._tokenizer)

    def encode(self, text: bytes) -> Marked:
        """text: as `sources.chats` writes conversations. Raises InputError where the template fails, or where it marks
        nothing."""
        messages = messages_of(text)
        try:
            whole, spans = hf_tokenizer.rendered(
                self._tokenizer, self._template, [self._quoted(one) for one in messages]
            )
        except Exception as error:  # whatever a template raises
            reason = first_line(error)
            problem = f"the chat template fails ({reason}) on {_shown(messages)}"
            raise InputError(f"{problem}; expected one that takes these messages", key=KEY) from None
        parts = [self._encoded(*part, spans) for part in _parts(whole)]
        ids, marks = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if not marks.any():
            problem = f"the chat template marks no token as an answer in {_shown(messages)}"
            raise InputError(f"{problem}; expected its generation block around every answer", key=KEY)
        return Marked(ids, marks)

    def _quoted(self, value: Any) -> Any:
        """A message with marks around all text that looks like a control token."""
        if isinstance(value, str):
            plain = value.replace(_BEGIN, "").replace(_END, "")
            return self._controls.sub(f"{_BEGIN}\\g<0>{_END}", plain)
        if isinstance(value, dict):
            return {key: one if key == "role" else self._quoted(one) for key, one in value.items()}
        return [self._quoted(one) for one in value] if isinstance(value, list) else value

    def _encoded(self, start: int, text: str, is_quoted: bool, spans: list[tuple[int, int]]) -> Marked:
        """A part of the text of a conversation, which begins at `start` in it."""
        found = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=is_quoted,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        places = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2) + start
        marks = np.zeros(len(places), dtype=np.uint8)
        for first, last in spans:
            marks |= ((places[:, 0] < last) & (places[:, 1] > first)).astype(np.uint8)
        return Marked(np.array(found["input_ids"], dtype=np.int64), marks)


def _parts(text: str) -> Iterator[tuple[int, str, bool]]:
    """(where it begins, text, whether it is quoted) of every part of a text with quoted parts."""
    place = 0
    for quoted in _QUOTED.finditer(text):
        if quoted.start() > place:
            yield place, text[place : quoted.start()], False
        yield quoted.start(1), quoted[1], True
        place = quoted.end()
    if place < len(text) or not place:
        yield place, text[place:], False


def _shown(messages: list[dict[str, Any]]) -> str:
    roles = ", ".join(one["role"] for one in messages[:6]) + (", ..." if len(messages) > 6 else "")
    return f"a conversation ({roles}) that begins {messages[0]['content'][:60]!r}"
