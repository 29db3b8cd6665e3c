"""The template that makes a text of a conversation and marks the answers in it. A plan checks it, and renders none."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raystage.data.tokenizer_files import TokenizerFacts
from raystage.data.tokenizer_names import BYTE_TOKENIZER
from raystage.errors import InputError
from raystage.sources.table import SOURCES
from raystage.sources.text_files import unreadable

KEY = "data.chat_template"
LARGEST_BYTES = 2**20
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_CLOCK = re.compile(r"\bstrftime_now\b")
_BLOCK = "{% generation %}...{% endgeneration %}"


def check_documents(source: str, are_chats: bool, template: str | None, end_token: str | None) -> None:
    """Refuse a source without conversations where a stage learns from them, and keys that only one of both has.

    Raises InputError.
    """
    if are_chats and "chats" not in SOURCES[source].gives:
        *fitting, last = [name for name, one in SOURCES.items() if "chats" in one.gives]
        problem = f"found {source} with objective: instruct, which reads conversations"
        raise InputError(f"{problem}; expected {', '.join(fitting)} or {last}", key="data.source")
    if are_chats and end_token is not None:
        problem = f"found {end_token!r} with objective: instruct, whose chat template ends a conversation"
        raise InputError(f"{problem}; expected none", key="data.end_token")
    if not are_chats and template is not None:
        problem = f"found {template!r} for an objective that reads text; expected it with objective: instruct"
        raise InputError(problem, key=KEY)


def find_template(file: str | None, tokenizer: str, known: TokenizerFacts) -> str | None:
    """The template of a stage: that of the file, else that of a tokenizer's folder. None for the template of a Hub
    name, whose commit says which one it is. Raises InputError.
    """
    if tokenizer == BYTE_TOKENIZER:
        problem = "found 'bytes', which has no tokens for the roles of a conversation"
        raise InputError(f"{problem}; expected a tokenizer with a chat template", key="data.tokenizer")
    if file is not None:
        return checked(_read(file), repr(file))
    if os.path.isdir(tokenizer) or known.chat_template:
        found = checked(known.chat_template, f"the tokenizer {tokenizer!r}")
        return found if os.path.isdir(tokenizer) else None  # a key must not depend on what was downloaded
    return None


def checked(template: str | None, owner: str) -> str:
    """The template. Raises InputError where there is none, or one that cannot serve for training."""
    if not template:
        problem = f"{owner} has no chat template"
        raise InputError(f"{problem}; expected a file with one here, or a tokenizer that has one", key=KEY)
    if not _GENERATION.search(template):
        problem = f"the chat template of {owner} does not mark answers"
        raise InputError(f"{problem}; expected {_BLOCK} around them, in a copy that data.chat_template names", key=KEY)
    if _CLOCK.search(template):
        problem = (
            f"the chat template of {owner} reads the clock (strftime_now), so that it gives other tokens every day"
        )
        raise InputError(f"{problem}; expected a copy with a fixed date", key=KEY)
    return template


def _read(file: str) -> str:
    path = Path(file)
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"found {path.stat().st_size} bytes in {file!r}; expected a Jinja template", key=KEY)
        return path.read_text("utf-8")
    except OSError as error:
        raise unreadable(error, KEY) from None
    except ValueError:
        raise InputError(f"found {file!r}, which is no text in UTF-8; expected a Jinja template", key=KEY) from None
