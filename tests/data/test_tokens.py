"""Tokens and batches: what is read depends on the text, the seed and the position, on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factories import make_schedule, save_words
from raystage.data import tokens
from raystage.data.plan import DataPlan
from raystage.data.tokenizer_names import BYTE_VOCABULARY, tokenizer_fingerprint
from raystage.data.tokenizers import ByteTokenizer, PretrainedTokenizer
from raystage.data.tokens import TokenWindows, open_streams
from raystage.errors import InputError
from raystage.planning.build import make_plan


@pytest.fixture
def planned(tmp_path: Path) -> DataPlan:
    folder = tmp_path / "text"
    folder.mkdir()
    return make_plan(make_schedule(folder)).staged.stages[0].data


def test_bytes_are_tokens_and_256_ends_a_document() -> None:
    assert ByteTokenizer().encode("hé".encode()).tolist() == [104, 195, 169, 256]


def test_streams_hold_every_document_once_and_no_text_on_both_sides(planned: DataPlan, tmp_path: Path) -> None:
    streams = open_streams(planned, BYTE_VOCABULARY, tmp_path / "cache")
    documents = [set(_documents(stream)) for stream in (streams.train, streams.held_out)]
    texts = {path.read_bytes() for path in Path(planned.path[0]).iterdir()}
    assert documents[0] | documents[1] == texts
    assert not documents[0] & documents[1]
    assert len(streams.train) + len(streams.held_out) == sum(len(text) + 1 for text in texts)


def test_streams_are_made_once_for_a_machine(planned: DataPlan, tmp_path: Path) -> None:
    first = open_streams(planned, BYTE_VOCABULARY, tmp_path / "cache")
    for path in Path(planned.path[0]).iterdir():
        path.unlink()
    second = open_streams(planned, BYTE_VOCABULARY, tmp_path / "cache")
    np.testing.assert_array_equal(first.train, second.train)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_other_text_than_was_planned_with_is_refused(planned: DataPlan, tmp_path: Path) -> None:
    Path(planned.path[0], "more.txt").write_text("one more document")
    with pytest.raises(InputError, match=r"data: the text on this machine .* is not the one that was planned with"):
        open_streams(planned, BYTE_VOCABULARY, tmp_path / "cache")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(planned: DataPlan, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"model\.vocab_size: found 200; expected at least 257: the ids of the tokenizer"
    ):
        open_streams(planned, 200, tmp_path / "cache")


def test_a_hugging_face_tokenizer_from_a_folder(planned: DataPlan, tmp_path: Path) -> None:
    tokenizer = str(save_words(tmp_path / "tokenizer", "document", "7"))
    planned = replace(planned, tokenizer=tokenizer, tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
    streams = open_streams(planned, 4, tmp_path / "cache")
    both = np.concatenate([streams.train, streams.held_out])
    assert np.count_nonzero(both == 2) == 120  # 12 documents of 10 lines
    assert np.count_nonzero(both == 3) == 10  # of which one is about 7
    assert np.count_nonzero(both == 1) == 12


def test_another_tokenizer_than_was_planned_with_is_refused(planned: DataPlan, tmp_path: Path) -> None:
    tokenizer = str(save_words(tmp_path / "tokenizer", "document", "7"))
    planned = replace(planned, tokenizer=tokenizer, tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
    save_words(tmp_path / "tokenizer", "document", "8")
    with pytest.raises(InputError, match=r"^data.tokenizer: found other files in .* than were planned with"):
        open_streams(planned, 4, tmp_path / "cache")


def test_a_tokenizer_that_is_not_there_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"data\.tokenizer: 'no/such-tokenizer' cannot be loaded"):
        PretrainedTokenizer("no/such-tokenizer")


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order() -> None:
    reader = TokenWindows(np.arange(101, dtype=np.uint16), 10, seed=0)
    first, second = reader.sequences(0, 10), reader.sequences(10, 10)
    assert sorted(first[:, 0].tolist()) == list(range(0, 100, 10))
    assert sorted(second[:, 0].tolist()) == list(range(0, 100, 10))
    assert first[:, 0].tolist() != second[:, 0].tolist()


def test_targets_are_the_inputs_one_further_on() -> None:
    sequences = TokenWindows(np.arange(101, dtype=np.uint16), 10, seed=3).sequences(0, 10)
    np.testing.assert_array_equal(sequences[:, 1:], sequences[:, :-1] + 1)
    assert sequences.dtype == np.int64


def test_what_a_position_holds_does_not_depend_on_how_it_is_reached() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    whole = TokenWindows(stream, 10, seed=1).sequences(0, 250)
    for first in (0, 7, 99, 100, 180):
        np.testing.assert_array_equal(TokenWindows(stream, 10, seed=1).sequences(first, 60), whole[first : first + 60])


def test_another_seed_is_another_order() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    assert not np.array_equal(
        TokenWindows(stream, 10, 0).sequences(0, 20), TokenWindows(stream, 10, 1).sequences(0, 20)
    )


def test_the_order_of_an_epoch_is_fixed_for_ever() -> None:
    """Golden: a change here changes every run's data; raise plan.CODE_EPOCH with it."""
    assert tokens.epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_evaluation_windows_are_spread_over_the_whole_stream() -> None:
    reader = TokenWindows(np.arange(1001, dtype=np.uint16), 10, seed=0)
    assert reader.spread(4)[:, 0].tolist() == [0, 250, 500, 750]
    assert len(reader.spread(10_000)) == 100


def test_a_stream_shorter_than_a_sequence_is_refused() -> None:
    with pytest.raises(InputError, match="found 5 tokens, fewer than one sequence of context_length 10"):
        TokenWindows(np.arange(5, dtype=np.uint16), 10, seed=0)


def _documents(stream: np.ndarray) -> list[bytes]:
    ends = np.flatnonzero(stream == 256)
    starts = np.concatenate([[0], ends[:-1] + 1])
    return [stream[start:end].astype(np.uint8).tobytes() for start, end in zip(starts, ends, strict=True)]
