"""The laws of sources whose documents are rows: what is read, split and hashed follows from the content alone."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import raystage.sources.jsonl
from raystage.errors import InputError
from raystage.files import file_facts
from raystage.sources import row_cache, row_index
from raystage.sources.corpus import Corpus, SourceOptions
from raystage.sources.table import read_corpus
from row_files import TEXTS, WRITERS, write_jsonl

every_format = pytest.mark.parametrize("source", WRITERS)


def texts_of(corpus: Corpus, fraction: float = 0.3) -> tuple[list[str], list[str]]:
    """(training, held-out) texts, in the order in which they are read."""
    found = [document for piece in corpus.pieces(fraction) for document in piece.read()]
    sides = ([one.content.decode() for one in found if one.is_held_out is side] for side in (False, True))
    return tuple(sides)


@pytest.fixture
def files(source: str, tmp_path: Path) -> Path:
    """Two files of a format."""
    ending, write = WRITERS[source]
    write(tmp_path / f"rows/a{ending}", TEXTS[:25])
    write(tmp_path / f"rows/deeper/b{ending}", TEXTS[25:])
    return tmp_path / "rows"


@every_format
def test_every_row_is_read_once_on_the_side_of_its_digest(source: str, files: Path) -> None:
    corpus = read_corpus(source, (str(files),))
    training, held_out = texts_of(corpus)
    assert sorted(training + held_out) == sorted(TEXTS)
    for text in TEXTS:
        place = int(sha256(text.encode()).hexdigest()[:8], 16) / 2**32
        assert (text in held_out) == (place < 0.3)
    sides = corpus.split(0.3)
    assert [len(side) for side in sides] == [len(training), len(held_out)]
    assert sides[0].size.num_bytes == sum(len(text.encode()) for text in training)
    assert len(corpus) == len(TEXTS)


@every_format
def test_rows_stay_in_order_and_files_come_in_that_of_their_content(source: str, files: Path, tmp_path: Path) -> None:
    """Under other names, the same stream of documents."""
    ending, _ = WRITERS[source]
    before = read_corpus(source, (str(files),))
    read_before = texts_of(before)
    read = read_before[0]
    for part in (TEXTS[:25], TEXTS[25:]):
        inside = [text for text in read if text in part]
        assert inside == [text for text in part if text in read]
    shutil.move(files / f"a{ending}", tmp_path / f"rows/z{ending}")
    after = read_corpus(source, (str(files),))
    assert after.fingerprint == before.fingerprint
    assert texts_of(after) == read_before


@every_format
def test_other_rows_have_another_fingerprint(source: str, files: Path) -> None:
    ending, write = WRITERS[source]
    found = {read_corpus(source, (str(files),)).fingerprint}
    for changed in (TEXTS[:24], [*TEXTS[:24], "other"], TEXTS[24::-1], [*TEXTS[:25], TEXTS[0]]):
        write(files / f"a{ending}", changed)
        found.add(read_corpus(source, (str(files),)).fingerprint)
    assert len(found) == 5


@every_format
def test_no_copy_of_a_held_out_document_is_trained_on(source: str, tmp_path: Path) -> None:
    ending, write = WRITERS[source]
    path = str(write(tmp_path / f"a{ending}", TEXTS * 2))
    training, held_out = texts_of(read_corpus(source, (path,)))
    assert len(training) + len(held_out) == 120
    assert not set(training) & set(held_out)
    other = str(write(tmp_path / f"other{ending}", [*TEXTS[::3], "new"]))
    apart = read_corpus(source, (path,), SourceOptions(validation_path=(other,)))
    training, held_out = texts_of(apart)
    assert held_out == [*TEXTS[::3], "new"]
    assert sorted(training) == sorted([text for text in TEXTS if text not in TEXTS[::3]] * 2)
    assert apart.fingerprint != read_corpus(source, (path,)).fingerprint


@every_format
def test_what_is_held_out_is_known_across_sources(source: str, files: Path, tmp_path: Path) -> None:
    """The same text as rows and as files: the digests are those of the content."""
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS[:30]):
        (tmp_path / f"texts/{number}.txt").write_text(text)
    rows_held, files_held = (
        read_corpus(name, (str(path),)).split(0.3)[1] for name, path in ((source, files), ("text", tmp_path / "texts"))
    )
    assert rows_held.count_shared(files_held) == files_held.count_shared(rows_held) == len(files_held)
    count, sample = rows_held.smallest(5)
    assert (count, files_held.count_among(sample)) == (
        len(rows_held),
        len(set(files_held.smallest(60)[1]) & set(sample)),
    )


@every_format
def test_what_is_held_out_stays_so_at_larger_fractions(source: str, files: Path) -> None:
    corpus = read_corpus(source, (str(files),))
    held = [set(texts_of(corpus, fraction)[1]) for fraction in (0.1, 0.3, 0.5, 0.9)]
    assert all(smaller <= larger for smaller, larger in pairwise(held))
    assert all(map(len, corpus.split(corpus.working_fraction())))


@every_format
def test_a_field_may_have_another_name(source: str, tmp_path: Path) -> None:
    ending, write = WRITERS[source]
    path = str(write(tmp_path / f"a{ending}", TEXTS, "my.body"))
    assert sorted(texts_of(read_corpus(source, (path,), SourceOptions(field="my.body")), 0)[0]) == sorted(TEXTS)
    with pytest.raises(InputError, match=r"^data.field: .*'text'.*'id', 'my\.body'"):
        read_corpus(source, (path,))


@every_format
def test_empty_texts_are_no_documents(source: str, tmp_path: Path) -> None:
    ending, write = WRITERS[source]
    with_empty = read_corpus(source, (str(write(tmp_path / f"a{ending}", ["", *TEXTS, "", ""])),))
    assert with_empty.fingerprint == read_corpus(source, (str(write(tmp_path / f"b{ending}")),)).fingerprint
    with pytest.raises(InputError, match=r"^data.path: found no text in "):
        read_corpus(source, (str(write(tmp_path / f"c{ending}", ["", ""])),))


@every_format
def test_files_are_found_by_folder_pattern_and_glob(source: str, files: Path) -> None:
    ending, _ = WRITERS[source]
    (files / "notes.txt").write_text("no rows")
    all_of_it = len(read_corpus(source, (str(files),)))
    assert all_of_it == 60
    assert len(read_corpus(source, (str(files / f"*{ending}"),))) == 25
    assert len(read_corpus(source, (str(files / f"**/*{ending}"),))) == 60
    assert len(read_corpus(source, (str(files),), SourceOptions(files=f"b{ending}"))) == 35
    for path in (files / "none", files / "*.none"):
        with pytest.raises(InputError, match=r"^data.path: found no file"):
            read_corpus(source, (str(path),))


@every_format
def test_a_file_that_changes_in_between_is_not_tokenized(source: str, files: Path) -> None:
    ending, write = WRITERS[source]
    for changed in (TEXTS[:24], [*TEXTS[:24], "more"], TEXTS[24::-1]):
        write(files / f"a{ending}", TEXTS[:25])
        corpus = read_corpus(source, (str(files),))
        write(files / f"a{ending}", changed)
        with pytest.raises(InputError, match=r"data.path: '.*a\..*' changed after it was planned with"):
            texts_of(corpus)


def test_lines_do_not_depend_on_where_a_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl"))
    whole = read_corpus("jsonl", (path,))
    for size in (1, 7, 100, 1000):
        monkeypatch.setattr(raystage.sources.jsonl, "BLOCK_BYTES", size)
        parts = read_corpus("jsonl", (path,))
        assert parts.fingerprint == whole.fingerprint
        assert texts_of(parts) == texts_of(whole)


def test_several_processes_hash_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, part in (("a", TEXTS[:20]), ("b", TEXTS[20:50]), ("c", TEXTS[50:])):
        write_jsonl(tmp_path / f"{name}.jsonl", part)
    alone = read_corpus("jsonl", (str(tmp_path),))
    monkeypatch.setattr(row_index, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(row_index, "num_cpus", lambda: 2)
    together = read_corpus("jsonl", (str(tmp_path),))
    assert together.fingerprint == alone.fingerprint
    assert texts_of(together) == texts_of(alone)
    (tmp_path / "d.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"^data.path: '.*d.jsonl', line 1: found broken JSON"):
        read_corpus("jsonl", (str(tmp_path),))


# --- what a machine keeps


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was indexed, and is old enough to be kept in mind."""
    monkeypatch.setattr(row_cache, "SMALL_BYTES", 0)
    monkeypatch.setattr(file_facts, "FRESH_SECONDS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "a.jsonl")
    read_corpus("jsonl", (str(path),))
    return path


def test_a_second_plan_does_not_read_again(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_index, "_hashed", lambda *_: pytest.fail("read again"))
    corpus = read_corpus("jsonl", (str(kept),), SourceOptions(validation_path=(str(kept),)))
    assert len(corpus) == 60
    assert sorted(texts_of(read_corpus("jsonl", (str(kept),)))[0])


@pytest.mark.parametrize("change", ["content", "field", "damaged"])
def test_an_index_of_something_else_is_not_used(change: str, kept: Path, tmp_path: Path) -> None:
    before, options = read_corpus("jsonl", (str(kept),)), SourceOptions()
    if change == "content":
        write_jsonl(kept, TEXTS[::-1])
    if change == "field":
        write_jsonl(kept, TEXTS[::-1], "body")
        options = SourceOptions(field="body")
    if change == "damaged":
        (index,) = (tmp_path / "cache/raystage/rows").iterdir()
        content = bytearray(index.read_bytes())
        content[-1] ^= 1
        index.write_bytes(content)
    after = read_corpus("jsonl", (str(kept),), options)
    assert (after.fingerprint == before.fingerprint) == (change == "damaged")


@pytest.mark.parametrize(
    ("there", "instead"),
    [('"cat"', '"cot"'), ('"rows": [60]', '"rows": [59]'), ('"content": "', '"content": "f'), ("blocks", "clocks")],
)
def test_an_index_whose_head_is_damaged_is_not_used(there: str, instead: str, kept: Path, tmp_path: Path) -> None:
    """It has the hash that identifies the text, and the names of classes: they would be believed."""
    labels, options = ["cat", "dog"], SourceOptions(label="label")
    kept.write_text("".join(json.dumps({"text": text, "label": labels[n % 2]}) + "\n" for n, text in enumerate(TEXTS)))
    before = read_corpus("jsonl", (str(kept),), options)
    for index in (tmp_path / "cache/raystage/rows").iterdir():
        index.write_bytes(index.read_bytes().replace(there.encode(), instead.encode(), 1))
    after = read_corpus("jsonl", (str(kept),), options)
    assert (after.fingerprint, after.samples(0.2)) == (before.fingerprint, before.samples(0.2))


def change_in_place(file: Path) -> None:
    """Other bytes of the same size, with the time of the last change set back."""
    content, status = file.read_bytes(), file.stat()
    with file.open("r+b") as stream:
        stream.write(content.replace(b"document 5", b"document 6"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_change_whose_time_was_set_back_is_noticed(kept: Path) -> None:
    before = read_corpus("jsonl", (str(kept),)).fingerprint
    change_in_place(kept)
    assert read_corpus("jsonl", (str(kept),)).fingerprint != before


def test_a_change_under_the_same_stamp_is_noticed_when_tokenizing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that keeps no time of the last change of status."""
    same = kept.stat()
    monkeypatch.setattr("raystage.sources.places.stamp_of", lambda _: file_facts.stamp_of(same))
    change_in_place(kept)
    with pytest.raises(InputError, match="changed after it was planned with"):
        texts_of(read_corpus("jsonl", (str(kept),)))
    assert texts_of(read_corpus("jsonl", (str(kept),)))  # what was kept of it is forgotten


def test_nothing_is_kept_of_a_file_that_changed_just_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "SMALL_BYTES", 0)
    monkeypatch.setattr(file_facts, "FRESH_SECONDS", 3600)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read_corpus("jsonl", (str(write_jsonl(tmp_path / "a.jsonl")),))
    assert not (tmp_path / "cache/raystage/rows").exists()


def test_a_document_takes_twelve_bytes(tmp_path: Path) -> None:
    corpus = read_corpus("jsonl", (str(write_jsonl(tmp_path / "a.jsonl", [f"{n}" for n in range(5000)])),))
    (file,) = corpus.files
    assert file.digests.nbytes + file.lengths.nbytes == 12 * 5000
    assert isinstance(file.digests, np.ndarray)
