"""Conversations as documents: a list of messages, each with a role and a content, as rows of data sets hold them.

A conversation is JSON with sorted keys, so that equal conversations are equal documents in every format.
"""

from __future__ import annotations

import json
from typing import Any

from raystage.units import shown

ROLES = ("system", "developer", "user", "assistant", "tool")
ANSWERS = "assistant"
_EXAMPLE = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
# Where other tools have what is a role and a content here.
_SHAREGPT = {"from", "value"}


def conversation(value: Any, field: str) -> str:
    """A row's conversation, as JSON. Raises ValueError, which says what is wrong with it.

    Further keys of a message stay, since a template may read them; those that are null do not.
    """
    if not isinstance(value, list):
        found = "null" if value is None else shown(value)
        raise ValueError(f"found {found} in the field {field!r}; expected a list of messages: {_EXAMPLE}")
    if not value:
        raise ValueError(f"found no message in the field {field!r}; expected some: {_EXAMPLE}")
    messages = [_message(one, number) for number, one in enumerate(value, 1)]
    if not any(one["role"] == ANSWERS and one["content"].strip() for one in messages):
        roles = ", ".join(one["role"] for one in messages[:8])
        raise ValueError(f"found a conversation without an answer ({roles}); expected text of the role {ANSWERS}")
    try:
        return json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except TypeError as error:  # a column of Parquet with times, bytes or the like
        raise ValueError(f"found messages with a value that JSON has not ({error}); expected text, numbers") from None


def messages_of(document: bytes) -> list[dict[str, Any]]:
    """The messages of a conversation."""
    return json.loads(document)


def _message(value: Any, number: int) -> dict[str, Any]:
    where = f"in message {number}"
    if not isinstance(value, dict):
        raise ValueError(f'found {shown(value)} {where}; expected {{"role": "user", "content": "..."}}')
    message = {key: one for key, one in value.items() if one is not None}
    if "role" not in message:
        there = ", ".join(map(repr, message)) or "nothing"
        hint = " (ShareGPT's names: rename them)" if message.keys() >= _SHAREGPT else ""
        raise ValueError(f"found no role {where}, which has {there}{hint}; expected role and content")
    if message["role"] not in ROLES:
        raise ValueError(f"found the role {shown(message['role'])} {where}; expected one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str):
        found = f"{shown(message['content'])} as" if "content" in message else "no"
        raise ValueError(f"found {found} content {where} (of {message['role']}); expected text")
    return message
