"""Facts about files: found once, kept while the file stays as it is, found again where it may have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raystage.errors import InputError
from raystage.files import file_facts
from raystage.files.file_facts import facts_of, is_fresh
from raystage.sources.corpus import SourceOptions
from raystage.sources.documents import FileCorpus
from raystage.sources.table import read_corpus

Ask = Callable[[], list[str]]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of a corpus that is worth a cache, and old enough for it."""
    monkeypatch.setattr(file_facts, "SMALL_BYTES", 0)
    monkeypatch.setattr(file_facts, "FRESH_SECONDS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"text {number} " * 10)
    return sorted(folder.iterdir())


class Asked:
    """Asks for the first word and the size of files, and remembers which it read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, files: list[Path], kind: str = "words") -> list[object]:
        return [fact for _, fact in facts_of((kind,), files, self._find)]

    def _find(self, file: Path) -> list[object]:
        self.read.append(file.name)
        return [file.read_text()[:6], file.stat().st_size]


def kept_file(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache/raystage/files").iterdir()
    return found


def test_a_file_is_read_once(files: list[Path]) -> None:
    asked = Asked()
    first = asked(files)
    assert first == [[f"text {number}", 70] for number in range(6)]
    assert sorted(asked.read) == [file.name for file in files]
    again = Asked()
    assert again(files) == first
    assert again.read == []


def test_only_what_is_new_or_changed_is_read_again(files: list[Path]) -> None:
    Asked()(files)
    files[1].write_text("other content")
    new = files[0].with_name("7.txt")
    new.write_text("text 7")
    asked = Asked()
    assert asked([*files, new])[1:2] + asked([new]) == [["other ", 13], ["text 7", 6]]
    assert sorted(set(asked.read)) == ["1.txt", "7.txt"]


def test_what_is_gone_is_forgotten(files: list[Path], tmp_path: Path) -> None:
    Asked()(files)
    files[0].unlink()
    files[1].write_text("changed")
    Asked()(files[1:])
    assert b"/0.txt" not in kept_file(tmp_path).read_bytes()


def test_a_change_whose_time_was_set_back_is_found(files: list[Path]) -> None:
    Asked()(files)
    status = files[2].stat()
    files[2].write_text(files[2].read_text().upper())
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    asked = Asked()
    assert asked(files)[2] == ["TEXT 2", 70]
    assert asked.read == ["2.txt"]


def test_another_question_has_other_facts(files: list[Path]) -> None:
    Asked()(files)
    asked = Asked()
    asked(files, "lengths")
    assert len(asked.read) == 6


def test_nothing_is_kept_of_a_file_that_changed_just_before(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change again under the same times."""
    monkeypatch.setattr(file_facts, "FRESH_SECONDS", 3600)
    Asked()(files)
    asked = Asked()
    asked(files)
    assert len(asked.read) == 6


def test_what_counts_is_when_its_reading_began() -> None:
    now = time.time()
    assert is_fresh([int((now - 1) * 1e9), 0], now)
    assert is_fresh([0, int((now + 60) * 1e9)], now)
    assert not is_fresh([int((now - 3) * 1e9), int((now - 3) * 1e9)], now)


def test_damaged_facts_are_not_believed(files: list[Path], tmp_path: Path) -> None:
    Asked()(files)
    kept = kept_file(tmp_path)
    kept.write_bytes(kept.read_bytes().replace(b"text 3", b"text 9"))
    asked = Asked()
    assert asked(files)[3] == ["text 3", 70]
    assert len(asked.read) == 6


def test_an_error_comes_at_its_turn_and_what_was_found_before_is_kept(files: list[Path]) -> None:
    files[4].write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        Asked()(files)
    asked = Asked()
    asked(files[:4])
    assert asked.read == []


def test_a_small_corpus_is_read_without_a_cache(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_facts, "SMALL_BYTES", 2**26)
    Asked()(files)
    assert not (tmp_path / "cache").exists()


# --- of a corpus ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [SourceOptions(), SourceOptions(document_separator=" 3")])
def test_a_corpus_is_planned_twice_and_read_once(
    files: list[Path], options: SourceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> tuple:
        corpus = read_corpus("text", (str(files[0].parent),), options)
        assert isinstance(corpus, FileCorpus)
        corpus.check_utf8()
        return corpus.fingerprint, corpus.documents, corpus.holds_any([b"text 5"]), corpus.holds_any([b"text 9"])

    first = look()
    assert first[2:] == (True, False)
    for name in ("measured", "check_utf8", "holds_any"):
        monkeypatch.setattr(f"raystage.sources.documents.{name}", lambda *_: pytest.fail("read again"))
    assert look() == first


def test_what_is_no_text_is_refused_again(files: list[Path]) -> None:
    """An error is no fact: the file may be mended."""
    files[3].write_bytes(b"\x80abc")
    corpus = read_corpus("text", (str(files[0].parent),))
    for _ in range(2):
        with pytest.raises(InputError, match="which is no UTF-8"):
            corpus.check_utf8()
