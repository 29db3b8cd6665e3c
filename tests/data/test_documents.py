"""Where documents begin in a stream of tokens: as they were written, from every kind of source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chats import conversations, save_chat_words, write_chats
from factories import make_schedule, save_words
from raystage.config.schedule import parse
from raystage.data.order.documents import DocumentSpans, Starts
from raystage.data.plan import DataPlan
from raystage.data.tokenizers import make_tokenizer
from raystage.data.tokens import SampleWindows, TokenWindows, held_out_samples, open_streams
from raystage.planning.build import make_plan
from raystage.sources.table import read_corpus
from row_files import TEXTS, write_jsonl
from token_writers import write_megatron

LENGTHS = np.array([3, 1, 5, 2, 1, 1, 4])
BEGINS = [0, 3, 4, 9, 11, 12, 13]


def planned(folder: Path, data: dict, objective: str = "causal_lm") -> DataPlan:
    content = make_schedule(folder).content() | {"data": data, "objective": objective}
    content["model"] |= {"vocab_size": 4096}
    return make_plan(parse(content)).staged.stages[0].data


def files(folder: Path) -> DataPlan:
    (folder / "text").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / "text" / f"{number}.txt").write_text(text)
    return planned(folder, {"source": "text", "path": str(folder / "text"), "validation_fraction": 0.4})


def rows(folder: Path) -> DataPlan:
    write_jsonl(folder / "rows.jsonl", TEXTS)
    tokenizer = str(save_words(folder / "tokenizer", *sorted({word for text in TEXTS for word in text.split()})[:40]))
    data = {"source": "jsonl", "path": str(folder / "rows.jsonl"), "tokenizer": tokenizer}
    return planned(folder, data | {"validation_fraction": 0.4})


def chats(folder: Path) -> DataPlan:
    write_chats(folder / "chats.jsonl", conversations(20))
    data = {"source": "jsonl", "path": str(folder / "chats.jsonl"), "tokenizer": str(save_chat_words(folder / "words"))}
    return planned(folder, data | {"validation_fraction": 0.4}, "instruct")


def tokens(folder: Path) -> DataPlan:
    """Without a token that ends a document: only the index beside the file knows."""
    random = np.random.default_rng(0)
    path = write_megatron(folder, [random.integers(0, 300, size).tolist() for size in random.integers(1, 60, 40)])
    return planned(folder, {"source": "tokens", "path": str(path), "validation_fraction": 0.4})


@pytest.mark.parametrize("source", [files, rows, chats, tokens])
def test_documents_begin_where_they_were_written(source, tmp_path: Path) -> None:
    data = source(tmp_path)
    streams = open_streams(data, 4096, tmp_path / "cache")
    tokenizer = make_tokenizer(data)
    expected: tuple[list, list] = [], []
    for piece in read_corpus(data.source, data.path, data.options).pieces(data.validation_fraction):
        for document in piece.read():
            found = tokenizer.encode(document.content)
            expected[document.is_held_out].append(np.asarray(found[0] if data.options.are_chats else found))
    sides = (streams.train, streams.train_documents), (streams.held_out, streams.held_out_documents)
    for (stream, documents), written in zip(sides, expected, strict=True):
        assert len(written) == len(documents.lengths) > 3
        begins = documents.begins.tolist()
        assert begins[-1] == len(stream)
        for index, one in enumerate(written):
            np.testing.assert_array_equal(stream[begins[index] : begins[index + 1]], one)


def test_starts_are_flags_at_the_first_tokens() -> None:
    starts = Starts(DocumentSpans(LENGTHS))
    whole = np.zeros(17, dtype=np.uint8)
    whole[BEGINS] = 1
    assert len(starts) == 17
    for start in range(17):
        for stop in range(start, 19):
            np.testing.assert_array_equal(starts[start:stop], whole[start:stop])


def test_a_token_is_in_the_document_that_began_last() -> None:
    documents = DocumentSpans(LENGTHS)
    assert [documents.at(token) for token in range(17)] == np.repeat(np.arange(7), LENGTHS).tolist()


def test_samples_say_where_documents_begin_in_any_part_of_a_window() -> None:
    """Token n of the stream is n, so that every sample tells its place."""
    stream, flags = np.arange(17, dtype=np.uint16), Starts(DocumentSpans(LENGTHS))
    windows = SampleWindows(TokenWindows(stream, 8, 5), {"starts": TokenWindows(flags, 8, 5)})
    for length in (8, 4, 2):
        found = windows.read(0, 32 // length, length)
        np.testing.assert_array_equal(found["starts"], np.isin(found["tokens"], BEGINS))
        np.testing.assert_array_equal(windows.field("starts", 0, 32 // length, length), found["starts"])
    assert windows.field("mask", 0, 1, 8) is None


def test_held_out_samples_say_it_where_they_are_asked(tmp_path: Path) -> None:
    streams = open_streams(files(tmp_path), 4096, tmp_path / "cache")
    found = held_out_samples(streams, 32, 5, within_documents=True)
    assert found.keys() == {"tokens", "starts"}
    ends = found["tokens"][:, :-1] == 256
    np.testing.assert_array_equal(found["starts"][:, 1:], ends)
    assert ends.any()
    assert held_out_samples(streams, 32, 5).keys() == {"tokens"}
