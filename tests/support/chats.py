"""Conversations, and a tokenizer of whole words with a chat template that marks their answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factories import save_words
from row_files import write_jsonl

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }} </s>{% endgeneration %}{% else %}{{ message.content }}"
    "{% endif %} {% endfor %}"
)
Conversation = list[dict[str, object]]


def conversations(count: int = 80) -> list[Conversation]:
    """Of two kinds: one question, or two. The answer to `a b` is `b a`."""
    found = []
    for number in range(count):
        asked = [f"w{number % 9} w{number % 7}", f"w{number % 5} w{number % 8} w{number % 3}"][: 1 + number % 2]
        turns = [{"role": "system", "content": f"be brief {number}"}] if number % 3 == 0 else []
        for text in asked:
            turns += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": " ".join(reversed(text.split()))},
            ]
        found.append(turns)
    return found


def save_chat_words(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Beside the words of `conversations` one token for each role."""
    words = [f"w{number}" for number in range(9)]
    save_words(folder, "<system>", "<user>", "<assistant>", "be", "brief", *words)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_chats(path: Path, chats: Sequence[object] | None = None) -> Path:
    """JSON lines."""
    return write_jsonl(path, conversations() if chats is None else chats, "messages")
