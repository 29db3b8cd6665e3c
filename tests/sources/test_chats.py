"""Conversations as documents: the same in every format, and what is said about a row that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chats import conversations, write_chats
from raystage.errors import InputError
from raystage.sources.chats import messages_of
from raystage.sources.corpus import SourceOptions
from raystage.sources.table import read_corpus
from row_files import WRITERS, write_saved

CHATS = SourceOptions(field="messages", are_chats=True)
GOOD = conversations(3)


def test_every_format_has_the_same_conversations(tmp_path: Path) -> None:
    """A key that is null in other rows, as in columns of Parquet, is none."""
    chats = conversations(40)
    chats[5][0]["name"] = "é"
    wanted = sorted(json.dumps(chat, sort_keys=True) for chat in chats)
    for source, (ending, write) in (WRITERS | {"huggingface": ("", write_saved)}).items():
        corpus = read_corpus(source, (str(write(tmp_path / f"{source}/a{ending}", chats, "messages")),), CHATS)
        found = [messages_of(one.content) for piece in corpus.pieces(0) for one in piece.read()]
        assert sorted(json.dumps(chat, sort_keys=True) for chat in found) == wanted, source


def test_equal_conversations_are_on_one_side(tmp_path: Path) -> None:
    """The order of a message's keys does not matter."""
    turned = [[dict(reversed(turn.items())) for turn in chat] for chat in conversations(40)]
    corpus = read_corpus("jsonl", (str(write_chats(tmp_path / "a.jsonl", [*conversations(40), *turned])),), CHATS)
    training, held_out = corpus.split(0.3)
    assert training.count_shared(held_out) == 0
    assert len(training) + len(held_out) == 80


ASKED = {"role": "user", "content": "w1"}
TOLD = {"role": "assistant", "content": "w1"}
WRONG = {
    "null": (None, "found null in the field 'messages'; expected a list of messages"),
    "text": ("w1", "found 'w1' in the field 'messages'; expected a list of messages: [{\"role\""),
    "empty": ([], "found no message in the field 'messages'"),
    "no message": (["w1"], "found 'w1' in message 1; expected {\"role\""),
    "no role": ([ASKED, {"content": "w1"}], "found no role in message 2, which has 'content'; expected role and"),
    "ShareGPT": ([{"from": "human", "value": "w1"}], "which has 'from', 'value' (ShareGPT's names: rename them)"),
    "unknown role": ([{"role": "bot", "content": "w1"}], "found the role 'bot' in message 1; expected one of system, "),
    "role of another type": ([{"role": ["user"], "content": "w1"}], "found the role ['user'] in message 1"),
    "no content": ([ASKED, {"role": "assistant"}], "found no content in message 2 (of assistant); expected text"),
    "content of parts": ([{"role": "user", "content": [1]}], "found [1] as content in message 1 (of user)"),
    "no answer": ([ASKED, ASKED], "found a conversation without an answer (user, user); expected text of the role"),
    "blank answer": ([ASKED, {**TOLD, "content": " \n"}], "found a conversation without an answer (user, assistant)"),
}


@pytest.mark.parametrize("chat", WRONG)
def test_a_row_that_is_no_conversation_is_named(chat: str, tmp_path: Path) -> None:
    wrong, said = WRONG[chat]
    path = write_chats(tmp_path / "a.jsonl", [*GOOD, wrong, *GOOD])
    with pytest.raises(InputError) as refused:
        read_corpus("jsonl", (str(path),), CHATS)
    assert str(refused.value).startswith(f"data.path: '{path}', line 4: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("chat", ["null", "empty", "no content", "no answer", "unknown role"])
def test_a_row_of_parquet_is_named(chat: str, tmp_path: Path) -> None:
    wrong, said = WRONG[chat]
    pq.write_table(pa.table({"messages": [*GOOD, wrong, *GOOD]}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(InputError) as refused:
        read_corpus("parquet", (str(tmp_path),), CHATS)
    assert f"a.parquet', row 4: {said[:20]}" in str(refused.value)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"messages": ["w1"], "text": ["w1"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"data.field: .*'messages' has the type string; expected a column of lists"):
        read_corpus("parquet", (str(tmp_path),), CHATS)


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    line = json.dumps({"messages": [ASKED, TOLD]}).replace('"w1"', '"\\ud83d"')
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"found half of a character, \\ud83d, in the field 'messages'"):
        read_corpus("jsonl", (str(tmp_path),), CHATS)
