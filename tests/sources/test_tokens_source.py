"""Tokens that other programs wrote: the same documents from every format, and what is said of a file that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import raystage.sources.tokens
from factories import make_schedule, save_words
from raystage.config.schedule import Schedule, parse
from raystage.data.tokens import open_streams
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.results.data.data_use import count
from raystage.sources.corpus import Corpus, SourceOptions
from raystage.sources.table import read_corpus
from token_writers import (
    TOKEN_WRITERS,
    flat,
    write_datatrove,
    write_llama3,
    write_llmc,
    write_megatron,
    write_nanogpt,
    write_npy,
)

END = 400
draws = np.random.default_rng(0)
DOCUMENTS = [[*draws.integers(0, END, size=length).tolist(), END] for length in draws.integers(1, 60, size=50)]


def documents_of(corpus: Corpus, fraction: float = 0.3) -> tuple[list[list[int]], list[list[int]]]:
    found = [document for piece in corpus.pieces(fraction) for document in piece.read()]
    return tuple([one.content.tolist() for one in found if one.is_held_out is side] for side in (False, True))


@pytest.mark.parametrize("block_tokens", [2**24, 37])
@pytest.mark.parametrize("name", TOKEN_WRITERS)
def test_every_format_has_the_same_documents(
    name: str, block_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_corpus("tokens", (str(write_npy(tmp_path, DOCUMENTS)),), SourceOptions(end_id=END))
    monkeypatch.setattr(raystage.sources.tokens, "BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr(raystage.sources.tokens, "_CHUNK_TOKENS", 2**20 if block_tokens > 37 else 11)
    folder = tmp_path / "written"
    folder.mkdir()
    TOKEN_WRITERS[name](folder, DOCUMENTS)
    corpus = read_corpus("tokens", (str(folder),), SourceOptions(end_id=END))
    assert corpus.fingerprint == expected.fingerprint
    assert documents_of(corpus) == documents_of(expected)
    training, held_out = documents_of(corpus)
    assert sorted(training + held_out) == sorted(DOCUMENTS)
    assert [side.size.num_tokens for side in corpus.split(0.3)] == [len(flat(training)), len(flat(held_out))]
    token, file, position = corpus.largest
    assert (token, position) == (END, DOCUMENTS[0].index(END))
    assert Path(file).parent == folder


def test_an_end_is_added_where_an_index_ends_a_document_without_one(tmp_path: Path) -> None:
    bare = [document[:-1] for document in DOCUMENTS]
    for write in (write_megatron, write_datatrove):
        path = str(write(tmp_path, bare))
        assert sorted(sum_of(documents_of(read_corpus("tokens", (path,), SourceOptions(end_id=END))))) == sorted(
            DOCUMENTS
        )
        assert sorted(sum_of(documents_of(read_corpus("tokens", (path,))))) == sorted(bare)


def sum_of(sides: tuple[list, list]) -> list:
    return sides[0] + sides[1]


def test_the_last_document_may_lack_its_end_and_ends_alone_are_none(tmp_path: Path) -> None:
    """llm.c writes the end before each document."""
    before = [token for document in DOCUMENTS for token in (END, *document[:-1])]
    corpus = read_corpus("tokens", (str(write_llmc(tmp_path, [before])),), SourceOptions(end_id=END))
    assert sorted(sum_of(documents_of(corpus))) == sorted(DOCUMENTS)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, np.uint64, ">i8"], ids=str)
def test_wide_and_signed_numbers_are_the_same_documents(kind: object, tmp_path: Path) -> None:
    """Also where the last document lacks its end: `numpy.save` writes 64 bits unless told otherwise."""
    np.save(tmp_path / "a.npy", np.array([token for document in DOCUMENTS for token in document][:-1], kind))
    found = documents_of(read_corpus("tokens", (str(tmp_path / "a.npy"),), SourceOptions(end_id=END)))
    assert sorted(sum_of(found)) == sorted(DOCUMENTS)


def test_without_ends_documents_are_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raystage.sources.tokens, "STRETCH", 100)
    tokens = flat(DOCUMENTS)
    read = sum_of(documents_of(read_corpus("tokens", (str(write_nanogpt(tmp_path, DOCUMENTS)),)), 0.0))
    assert read == [tokens[start : start + 100] for start in range(0, len(tokens), 100)]


# --- a schedule


def schedule(folder: Path, path: Path, vocab_size: int | None = 512, **data: object) -> Schedule:
    content = make_schedule(folder).content()
    content["data"] = {"source": "tokens", "path": str(path), "validation_fraction": 0.3, **data}
    content["model"]["vocab_size"] = vocab_size
    return parse(content)


def test_a_schedule_reads_tokens(tmp_path: Path) -> None:
    plan = make_plan(schedule(tmp_path, write_datatrove(tmp_path, DOCUMENTS)))
    data = plan.staged.stages[0].data
    assert (data.tokenizer, data.tokenizer_fingerprint, data.facts()["tokenizer_fingerprint"]) == ("none",) * 3
    counted = count(data)
    streams = open_streams(data, 512, tmp_path / "cache")
    assert (counted.train_tokens, counted.held_out_tokens, counted.is_estimate) == (
        len(streams.train), len(streams.held_out), False,
    )  # fmt: skip
    corpus = read_corpus("tokens", data.path, data.options)
    assert streams.train.tolist() == flat(documents_of(corpus)[0])
    assert streams.held_out.tolist() == flat(documents_of(corpus)[1])


def test_large_ids_are_kept(tmp_path: Path) -> None:
    documents = [[*document, 100_000] for document in DOCUMENTS]
    data = (
        make_plan(schedule(tmp_path, write_llama3(tmp_path, documents), 100_001, end_token=100_000))
        .staged.stages[0]
        .data
    )
    streams = open_streams(data, 100_001, tmp_path / "cache")
    assert sorted(streams.train.tolist() + streams.held_out.tolist()) == sorted(flat(documents))


def test_a_token_beyond_the_vocabulary_is_named(tmp_path: Path) -> None:
    path = write_nanogpt(tmp_path, [*DOCUMENTS, [7, 5000, END]])
    at = len(flat(DOCUMENTS)) + 1
    where = f"{path} has the token 5000 at position {at:,}"
    for size, found in ((512, "found 512"), (None, "missing")):
        with pytest.raises(InputError) as refused:
            make_plan(schedule(tmp_path, path, size, end_token=str(END)))
        assert str(refused.value) == f"model.vocab_size: {found}; expected at least 5001: {where}"
    tokenizer = str(save_words(tmp_path / "tokenizer", *(f"word{n}" for n in range(600))))
    with pytest.raises(InputError) as refused:
        make_plan(schedule(tmp_path, path, 6000, end_token=END, tokenizer=tokenizer))
    assert str(refused.value).startswith(f"data.path: {where}, but the ids of the tokenizer {tokenizer!r} go up to 601")


def test_ends_are_ids(tmp_path: Path) -> None:
    path = write_nanogpt(tmp_path, DOCUMENTS)
    with pytest.raises(InputError, match=r"^data.end_token: found '</s>'; expected the id of the token .* 50256"):
        make_plan(schedule(tmp_path, path, end_token="</s>"))
    with pytest.raises(InputError, match=r"^data.path: found 1 document; .* \(data.end_token, the id of the token"):
        make_plan(schedule(tmp_path, path))


# --- files that are wrong


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def drop_index(path: Path) -> None:
    next(iter(path.parent.glob("a*i*d*x"))).unlink()


def damage_index(path: Path) -> None:
    index = next(iter(path.parent.glob("a*i*d*x")))
    index.write_bytes(index.read_bytes()[:-9])


def other_version(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4] = 9
    path.write_bytes(content)


WRONG = {
    ("llmc", cut_off, None): r"has [\d,.]+ tokens; expected the [\d,]+ that its header says, for format: llmc",
    ("llmc", other_version, None): r"has the version 9; expected version 1",
    ("nanogpt", cut_off, None): r"has [\d,]+ bytes; expected 2 for each token",
    ("nanogpt", None, "llmc"): r"begins with the number \d+; expected the magic number 20240520",
    ("nanogpt", None, "megatron"): r"has no index beside it; expected 'a.idx'",
    ("npy", cut_off, None): r"has [\d,]+ bytes; expected [\d,]+ numbers, as its header says",
    (
        "megatron",
        cut_off,
        None,
    ): r"a.idx' ends at token [\d,]+, but '.*a.bin' has [\d,.]+; expected an index",
    ("megatron", damage_index, None): r"a.idx' is cut off at [\d,]+ bytes; expected \d+ sequences in it",
    ("datatrove", drop_index, None): r"has no index beside it; expected 'a.ds.index'",
    ("datatrove", damage_index, None): r"a.ds.index' has [\d,]+ bytes; expected 8 for each document",
    ("datatrove", cut_off, None): r"has [\d,]+ bytes; expected 2 or 4 for each of [\d,]+ tokens",
}


@pytest.mark.parametrize(("name", "damage", "format"), WRONG)
def test_a_file_that_is_wrong_is_named(name: str, damage, format: str | None, tmp_path: Path) -> None:
    path = TOKEN_WRITERS[name](tmp_path, DOCUMENTS)
    if damage:
        damage(path)
    with pytest.raises(InputError, match=rf"^data.path: '.*{WRONG[name, damage, format]}"):
        read_corpus("tokens", (str(path),), SourceOptions(format=format))


def test_numbers_that_are_no_tokens_are_named(tmp_path: Path) -> None:
    write_megatron(tmp_path, [[1, 2, 3], [4, -1, 5]])
    with pytest.raises(InputError, match=r"^data.path: '.*a.bin' has the number -1 at position 4; expected token ids"):
        read_corpus("tokens", (str(tmp_path),))
    for kind in (np.int64, np.uint64):
        np.save(tmp_path / "b.npy", np.array([1, 2**32], kind))
        with pytest.raises(InputError, match=r"the number 4294967296 at position 1; expected token ids"):
            read_corpus("tokens", (str(tmp_path / "b.npy"),), SourceOptions(end_id=0))
    for wrong in (np.zeros(3), np.zeros((2, 2), np.int32)):
        np.save(tmp_path / "b.npy", wrong)
        with pytest.raises(InputError, match=r"expected whole numbers in one row, for format: npy"):
            read_corpus("tokens", (str(tmp_path / "b.npy"),))


def test_wide_tokens_without_a_header_are_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.array(flat(DOCUMENTS), np.uint32).tofile(path)
    with pytest.raises(InputError, match=r"^data.format: '.*a.npy' looks like numbers of 32 bits, but has no header"):
        read_corpus("tokens", (str(path),), SourceOptions(end_id=END))
    wide = read_corpus("tokens", (str(path),), SourceOptions(end_id=END, format="uint32"))
    assert sorted(sum_of(documents_of(wide))) == sorted(DOCUMENTS)
